"""The number and memory formats of training: what a recipe means on a device, and float16's loss scale.

Nothing here waits for the device: overflow, scale and skipped steps stay tensors there until an epoch is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.training.recipe import Recipe

START_SCALE = 2.0**16
MIN_SCALE = 1.0  # a gradient that overflows at this scale would overflow in float32 too
GROWTH_STEPS = 2000  # steps without overflow after which the scale is doubled


def working_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Choose the format that a network runs in; parameters are always float32.

    Args:
        recipe: its precision is taken, unless that is "auto".
        device: "auto" is bfloat16 on a GPU, float32 on a CPU.

    Returns:
        None for float32, which needs no autocast.
    """
    if recipe.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.precision]


def number_format(recipe: Recipe, device: torch.device) -> str:
    """Name the format that a network runs in.

    Args:
        recipe: how it is trained.
        device: where.

    Returns:
        float32, bfloat16 or float16.
    """
    return str(working_dtype(recipe, device) or torch.float32).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Make a network run in a format inside `with`.

    Args:
        device: of the network.
        dtype: None for float32.

    Returns:
        A context manager.
    """
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def keep_float32_products() -> Iterator[None]:
    """Compile without torch's advice to multiply float32 matrices in TF32.

    What runs in float32 is meant to: a recipe asks for it, or autocast leaves it. The precision of these products is
    the process's (`torch.get_float32_matmul_precision`), full unless a program changes it, for every engine alike; so
    a compiled step has the numbers of a plain one. A lower precision for compiled steps alone would change them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores for float32 matrix multiplication")
        yield


class LossScaler:
    """Dynamic loss scaling for float16.

    An overflow halves the scale and skips the step; GROWTH_STEPS without one double it. The scale is never below
    MIN_SCALE; a step that overflows there has collapsed.
    Source: Micikevicius et al. 2018, "Mixed precision training".

    Torch's GradScaler makes the same updates without a lower bound, so it cannot say when a step has collapsed. Its
    `state_dict` waits for the device and gives Python numbers; checkpoints hold the tensors `scale.scale` and
    `scale.growth`.

    Args:
        device: of the network.

    Attributes:
        scale: (1,), what the loss is multiplied by.
        growth: int32 (1,), steps since the scale last changed.
        overflow: (1,), 1 where the last step's gradients overflowed, else 0.
        skipped: (1,), steps that were skipped since the owner last set it to zero.
    """

    def __init__(self, device: torch.device):
        self.scale = torch.full((1,), START_SCALE, device=device)
        self.growth = torch.zeros((1,), dtype=torch.int32, device=device)
        self.overflow = torch.zeros((1,), device=device)
        self.skipped = torch.zeros((1,), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the scale, for the backward pass."""
        return loss * self.scale[0]

    def unscale(self, gradients: Iterable[Tensor]) -> Tensor:
        """Divide gradients by the scale, in place.

        Args:
            gradients: of every parameter that has one.

        Returns:
            (1,): 1 if the step has collapsed, else 0.
        """
        self.overflow.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), self.overflow, self.scale.reciprocal())
        self.skipped += self.overflow
        return self.overflow * (self.scale <= MIN_SCALE)

    def update(self) -> None:
        """Change the scale after a step."""
        torch._amp_update_scale_(self.scale, self.growth, self.overflow, 2.0, 0.5, GROWTH_STEPS)
        self.scale.clamp_(min=MIN_SCALE)

    def state(self) -> dict[str, Tensor]:
        """Copy what the next step depends on."""
        return {"scale": self.scale.clone(), "growth": self.growth.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.scale.copy_(state["scale"])
        self.growth.copy_(state["growth"])


def use_channels_last(network: nn.Module) -> nn.Module:
    """Store the channels of each four-dimensional tensor of a network last.

    Convolutions are fastest with this format.

    Args:
        network: is changed in place. Tensors of other dimensions have no such format and stay as they are.

    Returns:
        The network.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network
