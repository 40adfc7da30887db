"""How a weight is applied to images: as a convolution, or on a CPU as the plain matrix product that it may be.

Letters: B batch, I in-channels, O out-channels, H x W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MIN_MATMUL_ENTRIES = 2**16
"""Entries of a weight from which on a matrix product is faster, its weight's gradient above all: at 512 x 512 on 4 x 4
images by a fifth, at 320 x 320 on 16 x 16 by a twentieth; below, the convolution is as fast or faster."""

Pair = tuple[int, int]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """What `conv2d` gives for the same arguments: (B, I, H, W) and (O, I / groups, K, K) -> (B, O, H', W')."""
    if _is_product(x, weight, stride, padding, groups):
        return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_product(x: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, groups: int) -> bool:
    """Whether this is one matrix product of rows that lie as they are, and large enough; a compiler decides itself."""
    if x.is_cuda or weight.numel() < MIN_MATMUL_ENTRIES or torch.compiler.is_compiling():
        return False
    pointwise = weight.shape[2:] == (1, 1) and groups == 1 and tuple(stride) == (1, 1)
    return pointwise and is_unpadded(padding) and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def is_unpadded(padding: Pair | str) -> bool:
    """Whether a pointwise convolution meets no zeros at the edge."""
    return padding in ("valid", "same") or set(padding) == {0}
