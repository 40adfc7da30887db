"""ACDC's layers as stacks of matrices, for a GPU: few large calls instead of many small ones.

Letters: L layers, G maps of one shape, N width, C the orthonormal DCT-II.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import pi, sqrt
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

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


class Arranged(torch.autograd.Function):
    """Entries `order` of x, flattened, for a permutation and its inverse; the gradient is a gather too, no scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.shape = x.shape
        return x.reshape(-1)[order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return gradient.reshape(-1)[inverse].view(ctx.shape), None, None


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
    """R diag(first) C^T diag(second) C as `dtype`, for diagonals R first and second (.., N): (.., N, N).

    R is a riffle of rows, `inverse` R C^T. Formed as diag(R first) (R + R C^T diag(second - 1) C): in half precision
    the identity, of which diagonals start near, stays exact.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, second: Tensor, transform: Tensor, inverse: Tensor, riffle: Tensor) -> Tensor:
        width, dtype = rows.shape[-1], transform.dtype
        scaled = inverse * (second - 1).to(dtype).view(-1, 1, width)
        found = torch.baddbmm(riffle.expand_as(scaled), scaled, transform.expand_as(scaled))
        half = rows.to(dtype).view(-1, width)
        ctx.save_for_backward(half, second, transform, inverse)
        return found.mul_(half[:, :, None]).view(*rows.shape, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With Y = (gradient C^T) * (R C^T): Y second is the gradient by R first, Y^T (R first) that by second."""
        rows, second, transform, inverse = ctx.saved_tensors
        width = second.shape[-1]
        through = (gradient.reshape(-1, width) @ transform.T).view(-1, width, width).mul_(inverse)
        by_rows = through @ second.to(through.dtype).view(-1, width, 1)
        by_second = rows[:, None] @ through
        return (*(each.view_as(second).to(second.dtype) for each in (by_rows, by_second)), None, None, None)


class Fixed(NamedTuple):
    """What the stacks of one kind of map read, made once."""

    transform: Tensor  # C (N, N)
    inverse: Tensor  # R C^T
    riffle: Tensor  # R
    edge: Tensor  # what the product is multiplied by on the narrow side, with the scale
    orders: tuple[tuple[Tensor, Tensor], ...]  # of the entries of `first` and `second`, and their way back


_FIXED: WeakKeyDictionary[torch.nn.Module, dict[object, Fixed]] = WeakKeyDictionary()


def fixed(owner: torch.nn.Module, key: tuple[object, ...], make: Callable[[], Fixed]) -> Fixed:
    """What `make` returns, made once for the map that owns it; again each time while a CUDA graph is recorded first."""
    known = _FIXED.setdefault(owner, {})
    if key in known:
        return known[key]
    with torch.inference_mode(False), torch.no_grad():
        found = make()
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        known[key] = found
    return found


def arrangements(maps: int, pairing: Tensor, unriffle: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Orders in which entries (G, L, N) are read as (L, G, N), by `pairing_order`, rows of the first also riffled."""
    layers, width = len(pairing), len(unriffle)
    places = torch.arange(maps * layers * width, device=pairing.device).view(maps, layers, width)
    found = [places[:, :, unriffle].transpose(0, 1)[pairing], places.transpose(0, 1)[pairing]]
    return tuple((order, torch.argsort(order.flatten())) for order in found)


def half_cosines(diagonals: Tensor) -> Tensor:
    """t_m / 2 (L, 2N) with t_m = sum_n c_n^2 d_n cos(pi n m / N), c_0^2 = 1/N and c_n^2 = 2/N, of diagonals d (L, N).

    By one real transform of length 2N.
    """
    padded = functional.pad(diagonals, (0, 1))
    return torch.fft.irfft(torch.complex(padded, torch.zeros_like(padded)), n=2 * diagonals.shape[1])


@lru_cache(maxsize=32)
def cosines(width: int) -> Tensor:
    """C (N, N) in float64, on the CPU."""
    index = torch.arange(width, dtype=torch.float64, device="cpu")
    matrix = torch.cos(pi / width * index[:, None] * (index + 0.5)) * sqrt(2 / width)
    matrix[0] *= sqrt(0.5)
    return matrix
