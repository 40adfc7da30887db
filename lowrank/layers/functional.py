"""Apply a weight to images: as a convolution or, on a CPU, as one matrix product where that is faster.

Letters: B batch, I in-channels, O out-channels, KH x KW kernel, H x W image, H' x W' output.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]  # vertical, horizontal

# On a CPU, a matrix product is faster than a 1 x 1 convolution from this many weight entries on, most of all in the
# weight's gradient: by a fifth for 512 x 512 weights on 4 x 4 images, by a twentieth for 320 x 320 on 16 x 16. With
# fewer entries the convolution is as fast or faster.
MIN_MATMUL_ENTRIES = 2**16


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve as `torch.nn.functional.conv2d`, by a matrix product where that is faster.

    Args:
        x: images (B, I, H, W).
        weight: (O, I / groups, KH, KW).
        bias: (O,), or None.
        stride: positions from one output to the next.
        padding: zeros added on each side, or "valid" or "same".
        dilation: positions from one entry of the kernel to the next.
        groups: number of groups of channels that are convolved separately.

    Returns:
        (B, O, H', W').
    """
    if _is_faster_as_matmul(x, weight, stride, padding, groups):
        return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_faster_as_matmul(x: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, groups: int) -> bool:
    """Return whether one matrix product gives the same output faster.

    The weight must be large, and the channels of a position contiguous, so that no image is copied. On a GPU cuDNN
    chooses the algorithm, in compiled code the compiler.
    """
    if x.is_cuda or weight.numel() < MIN_MATMUL_ENTRIES or torch.compiler.is_compiling():
        return False
    pointwise = weight.shape[2:] == (1, 1) and groups == 1 and tuple(stride) == (1, 1)
    return pointwise and is_unpadded(padding) and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def is_unpadded(padding: Pair | str) -> bool:
    """Return whether a pointwise convolution with this padding reads no zeros at the edge.

    Args:
        padding: zeros added on each side, or "valid" or "same". With stride 1, "same" adds none to a 1 x 1 kernel.

    Returns:
        False where zeros are added. The answer holds for 1 x 1 kernels alone.
    """
    return padding in ("valid", "same") or set(padding) == {0}
