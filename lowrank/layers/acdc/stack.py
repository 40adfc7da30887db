"""ACDC's layers as stacks of matrices, for a GPU: few large calls instead of many small ones.

Letters: L layers, G maps of one shape, N width, I and O in- and out-channels, C the orthonormal DCT-II, P the riffle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank.layers.acdc.entries import form, form_back, project


def spare_layers(layers: int) -> int:
    """How many of L layers a first step must pair off to leave a power of two."""
    return layers - (1 << (layers.bit_length() - 1))


@cache
def _pairing_order(matrices: int) -> tuple[int, ...]:
    """How to lay out a power of two of factors so that the left ones of all pairs come first, of their products too."""
    if matrices == 1:
        return (0,)
    pairs = _pairing_order(matrices // 2)
    return (*(2 * pair for pair in pairs), *(2 * pair + 1 for pair in pairs))


@cache
def slots_of(layers: int) -> tuple[int, ...]:
    """Where each of L layers lies among the L + S matrices of a stack, S being `spare_layers`.

    The first 2 S slots are the left and the right layers of S pairs; S slots for their products and the other layers
    follow: a power of two of matrices, whose products in pairs need no copies.
    """
    spare, found = spare_layers(layers), list[int]()
    order = _pairing_order(layers - spare)
    for position in range(layers - spare):
        slot = order.index(position)
        found += [slot, spare + slot] if slot < spare else [2 * spare + slot]
    return tuple(found)


class Fixed(NamedTuple):
    """What the stacks of one kind of map read besides the diagonals, made once."""

    waves: Tensor  # (N, 2N), see `acdc_entries.waves`
    turned_waves: Tensor  # (2N, N)
    gains: Tensor  # (L): the map's fixed scale on the first layer
    slots: Tensor  # (L)
    edge: Tensor | None  # (N, min(I, O)): T, or S transposed; None for a square map of several layers
    widens: bool  # O >= I


class Chain(torch.autograd.Function):
    """S M_L P M_(L-1) P .. M_1 T with M = C^T diag(second) C diag(first), as `dtype`: diagonals (G, L, N) -> (G, O, I).

    Transposed it is the product of the layers' matrices as `acdc_entries.form` writes them, T^T on its left and S^T
    on its right. They are multiplied in pairs, hence in log2 L calls; the last of them transposes back.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, kept: Fixed, dtype: torch.dtype) -> Tensor:
        maps, layers, width = first.shape
        first, halves = first.contiguous(), project(second.reshape(-1, width), kept.turned_waves)
        stack = first.new_empty(layers + spare_layers(layers), maps, width, width, dtype=dtype)
        form(first, halves, kept.gains, kept.slots, stack)
        levels = _levels(stack, spare_layers(layers))
        left, right = _ends(levels[-1], kept)
        ctx.save_for_backward(first, halves, left, right, stack, *levels[1:])
        ctx.kept = kept
        return torch.bmm(right.mT, left.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        first, halves, left, right, stack, *levels = ctx.saved_tensors
        kept, spare = ctx.kept, spare_layers(first.shape[1])
        levels = [stack[2 * spare :], *levels]
        below = torch.empty_like(stack)
        gradients = [below[2 * spare :], *map(torch.empty_like, levels[1:])]
        _ends_back(left, right, gradient.mT, kept, out=gradients[-1])
        for level in reversed(range(len(levels) - 1)):
            _halve_back(levels[level], gradients[level + 1], out=gradients[level])
        if spare:
            _halve_back(stack[: 2 * spare], below[2 * spare : 3 * spare], out=below[: 2 * spare])
        by_first, by_halves = form_back(below, first, halves, kept.gains, kept.slots)
        return by_first, project(by_halves, kept.waves).view_as(by_first), None, None


def _levels(stack: Tensor, spare: int) -> list[Tensor]:
    """Products in pairs, and of these again, down to two matrices; the first level is part of `stack`."""
    if spare:
        _halve(stack[: 2 * spare], out=stack[2 * spare : 3 * spare])
    levels = [stack[2 * spare :]]
    while len(levels[-1]) > 2:
        level = levels[-1]
        levels.append(_halve(level, out=level.new_empty(len(level) // 2, *level.shape[1:])))
    return levels


def _halve(level: Tensor, out: Tensor) -> Tensor:
    """Left factors, then right ones (2 M, G, N, N), to their products (M, G, N, N)."""
    left, right = (part.flatten(0, 1) for part in level.chunk(2))
    torch.bmm(left, right, out=out.flatten(0, 1))
    return out


def _halve_back(level: Tensor, gradient: Tensor, out: Tensor) -> None:
    """The gradient of a level from that of its products."""
    left, right = (part.flatten(0, 1) for part in level.chunk(2))
    by_left, by_right = (part.flatten(0, 1) for part in out.chunk(2))
    above = gradient.flatten(0, 1)
    torch.bmm(above, right.mT, out=by_left)
    torch.bmm(left.mT, above, out=by_right)


def _ends(level: Tensor, kept: Fixed) -> tuple[Tensor, Tensor]:
    """The two matrices whose product is the transposed weight; on its narrow side they have but min(I, O) channels."""
    edge = kept.edge
    if len(level) == 1 and edge is not None:
        fixed_end = edge.expand(level.shape[1], -1, -1)
        return (fixed_end.mT, level[0]) if kept.widens else (level[0], fixed_end)
    left, right = level
    if edge is None:
        return left, right
    return (edge.mT @ left, right) if kept.widens else (left, right @ edge)


def _ends_back(left: Tensor, right: Tensor, above: Tensor, kept: Fixed, out: Tensor) -> None:
    """The gradient (1 or 2, G, N, N) of the last level from `above`, that of the product of its ends."""
    edge, widens = kept.edge, kept.widens
    if len(out) == 1:  # the other end is fixed
        torch.bmm(*((left.mT, above) if widens else (above, right.mT)), out=out[0])
        return
    by_left = torch.bmm(above, right.mT, out=None if edge is not None and widens else out[0])
    by_right = torch.bmm(left.mT, above, out=None if edge is not None and not widens else out[1])
    if edge is not None:
        torch.matmul(*((edge, by_left) if widens else (by_right, edge.mT)), out=out[0 if widens else 1])


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
