"""The losses of a student: cross-entropy, knowledge distillation, attention transfer. All are minimised.

Shapes: B images, K classes, C channels, H x W positions of a tap. Every loss is a float32 scalar, a batch mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.errors import InputError

STUDY_TAPS = 3  # the study's beta was chosen for the ends of three stages


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute T^2 * KL(teacher || student) of softened predictions, a batch mean.

    Args:
        logits: the student's, (B, K).
        teacher_logits: (B, K).
        temperature: T, above 0; T^2 keeps the gradient's size whatever T is.

    Returns:
        The loss.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def attention_map(activation: Tensor) -> Tensor:
    """Compute where a tap is active: the mean over channels of its square.

    Args:
        activation: (B, C, H, W), or of a transformer (B, N, C), whose N tokens are positions then.

    Returns:
        float32 (B, H, W); of tokens (B, N, 1).
    """
    if activation.dim() == 3:
        activation = activation.transpose(1, 2).unsqueeze(3)
    if torch.compiler.is_compiling():  # the compiler fuses plain operations
        return activation.float().square().mean(1)
    mean_square: Tensor = _MeanSquare.apply(activation)
    return mean_square


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the square, in two kernels each way and without a float32 copy of the activation."""

    @staticmethod
    def forward(context: Any, activation: Tensor) -> Tensor:
        context.save_for_backward(activation)
        norm = torch.linalg.vector_norm(activation, dim=1, dtype=torch.float32)
        return norm.square() / activation.shape[1]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (activation,) = context.saved_tensors
        return activation * (gradient * (2 / activation.shape[1])).unsqueeze(1).to(activation.dtype)


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute how much the student's attention differs from its teacher's.

    Each pair of maps is pooled to the smaller of its two sizes, flattened and L2-normalised for each image; the loss is
    the mean squared difference over batch and positions, summed over taps, times 3 / number of taps.

    Args:
        student: attention maps (B, H, W), one for each tap, from attention_map.
        teacher: likewise, in the same order; of any sizes and scales.

    Returns:
        The loss.

    Raises:
        InputError: there are no maps, or not as many of the one as of the other.

    Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", in the form of the 2018-19 study.
    """
    if not student or len(student) != len(teacher):
        raise InputError(f"attention transfer needs as many student taps as teacher taps, but got {len(student)} and "
                         f"{len(teacher)}")  # fmt: skip
    parts = []
    for student_map, teacher_map in zip(student, teacher, strict=True):
        height, width = map(min, student_map.shape[1:], teacher_map.shape[1:])
        difference = _flatten(student_map, (height, width)) - _flatten(teacher_map, (height, width))
        squares = difference.square()
        # Compiled, a mean for each image is part of the kernel that normalises it. One over all images would be kernels
        # of its own, and keep the norms out of that kernel: on a GPU 7 instead of 17 for three taps.
        parts.append(squares.mean(1) if torch.compiler.is_compiling() else squares.mean())
    return torch.stack(parts).sum(0).mean() * (STUDY_TAPS / len(parts))


def _flatten(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool (B, H, W) to (B, h * w), each row of length 1."""
    if attention.shape[1:] != size:
        attention = functional.adaptive_avg_pool2d(attention, size)
    return functional.normalize(attention.float().flatten(1), dim=1)
