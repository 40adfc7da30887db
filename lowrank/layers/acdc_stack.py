"""ACDC's layers as stacks of matrices, for a GPU: few large calls instead of many small ones.

Letters: L layers, G maps of one shape, N width, C the orthonormal DCT-II.
"""

from __future__ import annotations

from functools import cache
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@cache
def pairing_order(layers: int) -> tuple[int, ...]:
    """How to lay out L factors of a product so that their products in pairs need no copies.

    The left factors of all pairs come first, then the right ones, then one left over; their products, in that order,
    are laid out the same way again. The last factor always comes last.
    """
    if layers == 1:
        return (0,)
    half = layers // 2
    pairs = [pair for pair in pairing_order(half + layers % 2) if pair < half]
    rest = (layers - 1,) if layers % 2 else ()
    return (*(2 * pair for pair in pairs), *(2 * pair + 1 for pair in pairs), *rest)


class Product(torch.autograd.Function):
    """The product of L matrices, each a stack (G, N, N), laid out by `pairing_order`: (L, G, N, N) -> (G, N, N).

    In pairs, hence in log2 L calls, every one of which reads and writes where the others left off.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        levels = [matrices]
        while len(levels[-1]) > 1:
            levels.append(_halved(levels[-1]))
        ctx.save_for_backward(*levels[:-1])
        return levels[-1][0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        below = gradient[None]
        for level in reversed(ctx.saved_tensors):
            below = _halved_back(level, below)
        return below


def _halved(level: Tensor) -> Tensor:
    """The products in pairs, and what is left over."""
    half = len(level) // 2
    found = level.new_empty(len(level) - half, *level.shape[1:])
    torch.bmm(level[:half].flatten(0, 1), level[half : 2 * half].flatten(0, 1), out=found[:half].flatten(0, 1))
    if len(level) % 2:
        found[half].copy_(level[-1])
    return found


def _halved_back(level: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of one level from that of the next."""
    half = len(level) // 2
    found = torch.empty_like(level)
    left, right, above = (part.flatten(0, 1) for part in (level[:half], level[half : 2 * half], gradient[:half]))
    torch.bmm(above, right.mT, out=found[:half].flatten(0, 1))
    torch.bmm(left.mT, above, out=found[half : 2 * half].flatten(0, 1))
    if len(level) % 2:
        found[-1].copy_(gradient[half])
    return found


class Layers(torch.autograd.Function):
    """R diag(first) C^T diag(second) C as `dtype`, for diagonals (.., N): (.., N, N); R moves row n to riffle's n.

    The sandwich between C^T and C is a Toeplitz and a Hankel matrix (see `half_cosines`): gathered, not multiplied.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, unriffle: Tensor, dtype: torch.dtype) -> Tensor:
        width = first.shape[-1]
        halves = half_cosines(second.flatten(0, -2)).to(dtype)
        around = torch.cat([halves[:, 1:width].flip(1), halves[:, :width]], 1)  # m = N - 1 .. 0 .. N - 1
        found = around.unfold(1, width, 1).index_select(1, width - 1 - unriffle)
        found += halves[:, 1:].unfold(1, width, 1).index_select(1, unriffle)
        found *= first.flatten(0, -2).index_select(1, unriffle)[:, :, None]
        ctx.save_for_backward(first, second, unriffle)
        return found.unflatten(0, first.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With Y = (gradient C^T) * (R C^T): Y second is the gradient by R first, Y^T (R first) that by second."""
        first, second, unriffle = ctx.saved_tensors
        width, dtype = first.shape[-1], gradient.dtype
        inverse = cosines(width, first).T.to(dtype)
        through = (gradient.flatten(0, -2) @ inverse).view(-1, width, width).mul_(inverse.index_select(0, unriffle))
        by_first = through @ second.to(dtype).view(-1, width, 1)
        by_second = first.flatten(0, -2).index_select(1, unriffle).to(dtype)[:, None] @ through
        moved = torch.empty_like(first).view(-1, width)
        moved.index_copy_(1, unriffle, by_first[:, :, 0].to(first.dtype))
        return moved.view_as(first), by_second.view_as(second).to(second.dtype), None, None


def half_cosines(diagonals: Tensor) -> Tensor:
    """t_m / 2 (L, 2N) with t_m = sum_n c_n^2 d_n cos(pi n m / N), c_0^2 = 1/N and c_n^2 = 2/N, of diagonals d (L, N).

    By one real transform of length 2N.
    """
    padded = functional.pad(diagonals, (0, 1))
    return torch.fft.irfft(torch.complex(padded, torch.zeros_like(padded)), n=2 * diagonals.shape[1])


def cosines(width: int, like: Tensor) -> Tensor:
    """C (N, N), on the device and with the dtype of `like`; angles are reduced as integers, exactly."""
    index = torch.arange(width, device=like.device)
    turns = index[:, None] * (2 * index + 1) % (4 * width)
    matrix = torch.cos(turns.to(like.dtype) * (pi / (2 * width))) * sqrt(2 / width)
    matrix[0] *= sqrt(0.5)
    return matrix
