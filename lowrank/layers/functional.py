"""Apply a weight to images: as a convolution or, on a CPU, as one matrix product where that is faster.

Letters: B batch, I in-channels, O out-channels, K kernel size, H x W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]

# A matrix product beats the convolution from this many weight entries on, most of all in the weight's gradient: by a
# fifth at 512 x 512 on 4 x 4 images, by a twentieth at 320 x 320 on 16 x 16. Below, the convolution is as fast or
# faster.
MIN_MATMUL_ENTRIES = 2**16


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve as `torch.nn.functional.conv2d` does, by a matrix product where faster.

    Args:
        x: images (B, I, H, W).
        weight: (O, I / groups, K, K).
        bias: (O,), or None.
        stride: steps down and across.
        padding: zeros above and left, or "valid" or "same".
        dilation: distance of the kernel's entries.
        groups: groups of channels that are convolved apart.

    Returns:
        (B, O, H', W').
    """
    if _is_matmul(x, weight, stride, padding, groups):
        return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_matmul(x: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, groups: int) -> bool:
    """Return whether a large matrix product of rows that need no copy gives the same.

    Not on a GPU, and not while compiling: a compiler chooses by itself.
    """
    if x.is_cuda or weight.numel() < MIN_MATMUL_ENTRIES or torch.compiler.is_compiling():
        return False
    pointwise = weight.shape[2:] == (1, 1) and groups == 1 and tuple(stride) == (1, 1)
    return pointwise and is_unpadded(padding) and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def is_unpadded(padding: Pair | str) -> bool:
    """Return whether a pointwise convolution with this padding reads no zeros at the edge.

    Args:
        padding: zeros above and left, or "valid" or "same".
    """
    return padding in ("valid", "same") or set(padding) == {0}
