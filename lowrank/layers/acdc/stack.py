"""The weight of ACDC maps from stacks of matrices, for a GPU: few large calls instead of many small ones.

Letters: L layers, S excess layers, G maps of one shape, N width, I in-channels, O out-channels, C the orthonormal
DCT-II, P the riffle of channels between layers, T (N, I) the tiling of the input, and S^T (N, O) the transposed grouped
sum of outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank.layers.acdc.entries import matrices_backward, multiply_rows, write_matrices


def excess_layers(layers: int) -> int:
    """Return S: how many pairs of the L layers are multiplied first, so that a power of two of matrices remains.

    Args:
        layers: L.

    Returns:
        S, L minus the largest power of two that is not above L.
    """
    return layers - (1 << (layers.bit_length() - 1))


@cache
def _pairing_order(matrices: int) -> tuple[int, ...]:
    """Return an order of factors in which the left factors of all pairs come first, then the right ones.

    The same holds for the products of the pairs, for the products of these, and so on. So each step multiplies the
    first half of a stack by its second half, without a copy. The number of matrices is a power of two.
    """
    if matrices == 1:
        return (0,)
    pairs = _pairing_order(matrices // 2)
    return (*(2 * pair for pair in pairs), *(2 * pair + 1 for pair in pairs))


@cache
def layer_slots(layers: int) -> tuple[int, ...]:
    """Return each layer's position in a stack of L + S matrices, S being `excess_layers`.

    The first S positions hold the left layers of S pairs, the next S their right layers, the next S the products of
    these pairs. The layers without a pair follow. They and the products are a power of two of matrices, in
    `_pairing_order`.

    Args:
        layers: L.

    Returns:
        L positions.
    """
    excess, slots = excess_layers(layers), list[int]()
    order = _pairing_order(layers - excess)
    for position in range(layers - excess):
        slot = order.index(position)
        slots += [slot, excess + slot] if slot < excess else [2 * excess + slot]
    return tuple(slots)


class ChainConstants(NamedTuple):
    """Everything that `LayerChain` reads besides the diagonals; equal for maps of one shape."""

    halves_matrix: Tensor  # (N, 2N), see `lowrank.layers.acdc.entries.halves_matrix`
    transposed_halves_matrix: Tensor  # (2N, N)
    gains: Tensor  # (L,): the factor of each layer's matrix: the map's fixed scale for the first one, else 1
    slots: Tensor  # (L,): see `layer_slots`
    edge: Tensor | None  # (N, min(I, O)): T if O >= I, else S^T; None for a square map of several layers (identity)
    widens: bool  # O >= I


class LayerChain(torch.autograd.Function):
    """The weights S M_L P M_(L-1) P .. M_1 T with M = C^T diag(second) C diag(first).

    Maps two stacks of diagonals (G, L, N) to weights (G, O, I) in `dtype`.

    `write_matrices` writes the transposed matrix of each layer. The transposed weight is their product in the order of
    the layers, with T^T on the left and S^T on the right. Pairs are multiplied in one call, hence about log2 L calls;
    the last call also transposes.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, constants: ChainConstants, dtype: torch.dtype) -> Tensor:
        maps, layers, width = first.shape
        halves = multiply_rows(second.reshape(-1, width), constants.transposed_halves_matrix)
        first = first.contiguous()
        stack = first.new_empty(layers + excess_layers(layers), maps, width, width, dtype=dtype)
        write_matrices(first, halves, constants.gains, constants.slots, stack)
        levels = _levels(stack, excess_layers(layers))
        start, end = _end_factors(levels[-1], constants)
        ctx.save_for_backward(first, halves, start, end, stack, *levels[1:])
        ctx.constants = constants
        return torch.bmm(end.mT, start.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        first, halves, start, end, stack, *levels = ctx.saved_tensors
        constants, excess = ctx.constants, excess_layers(first.shape[1])
        levels = [stack[2 * excess :], *levels]
        stack_gradient = torch.empty_like(stack)
        gradients = [stack_gradient[2 * excess :], *map(torch.empty_like, levels[1:])]
        _end_factors_backward(start, end, gradient.mT, constants, out=gradients[-1])
        for level in reversed(range(len(levels) - 1)):
            _multiply_pairs_backward(levels[level], gradients[level + 1], out=gradients[level])
        if excess:
            _multiply_pairs_backward(
                stack[: 2 * excess], stack_gradient[2 * excess : 3 * excess], out=stack_gradient[: 2 * excess]
            )
        by_first, by_halves = matrices_backward(stack_gradient, first, halves, constants.gains, constants.slots)
        return by_first, multiply_rows(by_halves, constants.halves_matrix).view_as(by_first), None, None


def _levels(stack: Tensor, excess: int) -> list[Tensor]:
    """Multiply in pairs until at most two matrices are left; return the matrices of every step.

    The first level is a view of `stack`, whose positions for products are filled in. Backward needs all levels.
    """
    if excess:
        _multiply_pairs(stack[: 2 * excess], out=stack[2 * excess : 3 * excess])
    levels = [stack[2 * excess :]]
    while len(levels[-1]) > 2:
        level = levels[-1]
        levels.append(_multiply_pairs(level, out=level.new_empty(len(level) // 2, *level.shape[1:])))
    return levels


def _multiply_pairs(level: Tensor, out: Tensor) -> Tensor:
    """Multiply M left factors by M right ones, (2 M, G, N, N), into their products (M, G, N, N)."""
    first, second = (part.flatten(0, 1) for part in level.chunk(2))
    torch.bmm(first, second, out=out.flatten(0, 1))
    return out


def _multiply_pairs_backward(level: Tensor, gradient: Tensor, out: Tensor) -> None:
    """Write the gradient (2 M, G, N, N) of a level from that of its products (M, G, N, N)."""
    first, second = (part.flatten(0, 1) for part in level.chunk(2))
    by_first, by_second = (part.flatten(0, 1) for part in out.chunk(2))
    by_products = gradient.flatten(0, 1)
    torch.bmm(by_products, second.mT, out=by_first)
    torch.bmm(first.mT, by_products, out=by_second)


def _end_factors(level: Tensor, constants: ChainConstants) -> tuple[Tensor, Tensor]:
    """Return the two factors whose product is the transposed weight (G, I, O).

    The edge is multiplied into one of them, or is one of them where the map has a single layer. Only min(I, O) of the N
    channels remain on that side.
    """
    edge = constants.edge
    if len(level) == 1 and edge is not None:
        fixed_end = edge.expand(level.shape[1], -1, -1)
        return (fixed_end.mT, level[0]) if constants.widens else (level[0], fixed_end)
    start, end = level
    if edge is None:
        return start, end
    return (edge.mT @ start, end) if constants.widens else (start, end @ edge)


def _end_factors_backward(start: Tensor, end: Tensor, gradient: Tensor, constants: ChainConstants, out: Tensor) -> None:
    """Write the gradient (1 or 2, G, N, N) of the last level from that of the product of the two end factors."""
    edge, widens = constants.edge, constants.widens
    if len(out) == 1:  # the other factor is the edge, which is not trained
        torch.bmm(*((start.mT, gradient) if widens else (gradient, end.mT)), out=out[0])
        return
    by_start = torch.bmm(gradient, end.mT, out=None if edge is not None and widens else out[0])
    by_end = torch.bmm(start.mT, gradient, out=None if edge is not None and not widens else out[1])
    if edge is not None:
        torch.matmul(*((edge, by_start) if widens else (by_end, edge.mT)), out=out[0 if widens else 1])


_CONSTANTS: WeakKeyDictionary[torch.nn.Module, dict[object, ChainConstants]] = WeakKeyDictionary()


def cached_constants(
    owner: torch.nn.Module, key: tuple[object, ...], make: Callable[[], ChainConstants]
) -> ChainConstants:
    """Return a map's constants, computed once for each key.

    Constants that are first computed while a CUDA graph is captured are not cached: their memory belongs to the graph.

    Args:
        owner: the map; the cache holds it weakly.
        key: the dtypes and the device that the constants depend on.
        make: computes the constants.

    Returns:
        The constants.
    """
    cached = _CONSTANTS.setdefault(owner, {})
    if key in cached:
        return cached[key]
    with torch.inference_mode(False), torch.no_grad():
        constants = make()
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        cached[key] = constants
    return constants
