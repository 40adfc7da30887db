"""Tucker: the O x I weight, seen as a tensor of d dimensions, as a core with one factor for each dimension.

    W[j_1, .., j_d] = sum_{a_1, .., a_d} C[a_1, .., a_d] U_1[j_1, a_1] * .. * U_d[j_d, a_d]

The core C is itself kept as a tensor train, as in the study of 2018-19: else it would have s_1 * .. * s_d entries.

Source: Tucker 1966, "Some mathematical notes on three-mode factor analysis".

Letters: I in-channels, O out-channels, N = I * O, n_k sizes with n_1 * .. * n_d = N, s_k Tucker ranks, R_k ranks of the
core's train; factor U_k is (n_k, s_k), core piece k is (R_{k-1}, s_k, R_k) with R_0 = R_d = 1. G maps of a stack, `..`
a stack or nothing. x is `rank_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import align
from lowrank.layers.tensor.tensor_train_ops import (
    MAX_DIMS,
    MIN_DIMS,
    best_split,
    full_ranks,
    multiply_train,
    split_sizes,
    train_cost,
    train_halves,
    train_inner_product,
    train_params,
    tt_svd,
)
from lowrank.layers.two_stage import TwoStageMap


@lru_cache(maxsize=65536)
def tucker_ranks(sizes: tuple[int, ...], rank_scale: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return Tucker ranks s_1..s_d and the core's train ranks R_1..R_{d-1}.

    Of t_k = max(1, round(x * n_k)), round half to even, no s_k and no R_k is larger than the others let it be:
    R_k = min(n_1..n_k, n_{k+1}..n_d) at first; then for k = d..1 s_k = min(t_k, n_k, R_{k-1} * R_k) and, for k > 1,
    R_{k-1} = min(R_{k-1}, s_k * R_k).

    Args:
        sizes: n_1 .. n_d.
        rank_scale: x.
    """
    targets = [max(1, round(rank_scale * size)) for size in sizes]
    train = [1, *full_ranks(sizes), 1]
    ranks = [0] * len(sizes)
    for k in range(len(sizes) - 1, -1, -1):  # piece k lies between train[k] and train[k + 1]
        ranks[k] = min(targets[k], sizes[k], train[k] * train[k + 1])
        if k > 0:
            train[k] = min(train[k], ranks[k] * train[k + 1])
    return tuple(ranks), tuple(train[1:-1])


class Tucker(SeparableMethod):
    """Depthwise K x K and a pointwise map of Tucker factors and a core in train form.

    The map has sum R_{k-1} * s_k * R_k + sum n_k * s_k parameters and is charged I * O mult-adds a position.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["tucker"] = "tucker"
    dims: int = Field(default=3, ge=MIN_DIMS, le=MAX_DIMS)
    rank_scale: float = Field(default=1.0, gt=0, le=1)

    def structure(
        self, in_channels: int, out_channels: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return sizes n_k, Tucker ranks s_k and the core's train ranks R_1..R_{d-1} for an O x I map."""
        sizes = split_sizes(in_channels, out_channels, self.dims)
        return sizes, *tucker_ranks(sizes, self.rank_scale)

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        sizes, ranks, train = self.structure(in_channels, out_channels)
        return train_params(ranks, train) + sum(size * rank for size, rank in zip(sizes, ranks, strict=True))

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return TuckerMap(in_channels, out_channels, *self.structure(in_channels, out_channels), **options)


def expand_piece(basis: Tensor, piece: Tensor) -> Tensor:
    """Apply a factor to its core piece; at the ends of the train by a plain product.

    Args:
        basis: the factor (.., n, s).
        piece: (.., R, s, R').

    Returns:
        (.., R, n, R').
    """
    if piece.shape[-3] == 1:
        return (basis @ piece.squeeze(-3)).unsqueeze(-3)
    if piece.shape[-1] == 1:
        return (piece.squeeze(-1) @ basis.mT).unsqueeze(-1)
    return basis.unsqueeze(-3) @ piece


def expansion_order(ranks: Sequence[int]) -> list[int]:
    """Return the order in which factors are applied to a core of sizes s_k.

    The two ends come last, since they need no copy, and of them the one with the smaller rank comes last.
    """
    last = len(ranks) - 1
    return [*range(1, last), *((last, 0) if ranks[0] <= ranks[last] else (0, last))]


def expand_core(core: Tensor, bases: Sequence[Tensor], sizes: Sequence[int], ranks: Sequence[int]) -> Tensor:
    """Apply all factors to a core that is multiplied out, by plain products.

    Args:
        core: (.., s_1 * .. * s_d).
        bases: factors (.., n_k, s_k).
        sizes: n_1 .. n_d.
        ranks: s_1 .. s_d.

    Returns:
        (.., N).
    """
    shape = list(ranks)
    for k in expansion_order(ranks):
        before, after = prod(shape[:k]), prod(shape[k + 1 :])
        if k == len(ranks) - 1:
            core = (core.unflatten(-1, (before, ranks[k])) @ bases[k].mT).flatten(-2)
        elif k == 0:
            core = (bases[k] @ core.unflatten(-1, (ranks[k], after))).flatten(-2)
        else:
            rows = core.unflatten(-1, (before, ranks[k], after)).transpose(-3, -2).flatten(-2)
            core = (bases[k] @ rows).unflatten(-1, (before, after)).transpose(-3, -2).flatten(-3)
        shape[k] = sizes[k]
    return core


@lru_cache(maxsize=65536)
def rebuild_costs(sizes: tuple[int, ...], ranks: tuple[int, ...], train: tuple[int, ...]) -> tuple[int, int]:
    """Count the mult-adds of building the weight, in either order.

    Args:
        sizes: n_1 .. n_d.
        ranks: Tucker ranks s_1 .. s_d.
        train: ranks R_1 .. R_{d-1} of the core's train.

    Returns:
        The cost with factors applied to core pieces first, and with the core multiplied out first.
    """
    edges = pairwise((1, *train, 1))
    pieces = sum(before * n * s * after for (before, after), n, s in zip(edges, sizes, ranks, strict=True))
    shape, expansion = list(ranks), 0
    for k in expansion_order(ranks):
        expansion += prod(shape) * sizes[k]
        shape[k] = sizes[k]
    return pieces + train_cost(sizes, train), train_cost(ranks, train) + expansion


class ThreeFactorProduct(torch.autograd.Function):
    """Weights (.., N) of three factors (.., 3, n, s) and core pieces (.., 3, s, M), padded with zeros.

    Piece k holds (R_{k-1}, R_k) in its last dimension. One batched product applies all factors. Their outputs'
    gradients are written into one tensor, by views, so that two batched products give the gradients of all factors and
    all pieces.
    """

    @staticmethod
    def forward(ctx: Any, bases: Tensor, pieces: Tensor, sizes: tuple[int, int, int], ranks: tuple[int, int]) -> Tensor:
        stack = bases.shape[:-3]
        bases, pieces = bases.reshape(-1, *bases.shape[-2:]), pieces.reshape(-1, *pieces.shape[-2:])
        first, middle, last = _parts(torch.bmm(bases, pieces), sizes, ranks)
        middle = middle.transpose(1, 2).flatten(2)  # (G, R_1, n_2 * R_2)
        joined = torch.bmm(first, middle).view(len(first), -1, ranks[1])  # (G, n_1 * n_2, R_2)
        ctx.save_for_backward(bases, pieces, first, middle, last, joined)
        ctx.sizes, ctx.ranks, ctx.stack = sizes, ranks, stack
        return torch.bmm(joined, last.mT).view(*stack, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bases, pieces, first, middle, last, joined = ctx.saved_tensors
        (n_1, n_2, n_3), (_, r_2) = ctx.sizes, ctx.ranks
        gradient = gradient.reshape(len(first), n_1 * n_2, n_3)
        product_gradient = bases.new_zeros(len(bases), bases.shape[1], pieces.shape[2])
        first_gradient, middle_gradient, last_gradient = _parts(product_gradient, ctx.sizes, ctx.ranks)
        torch.bmm(gradient.mT, joined, out=last_gradient)
        joined_gradient = torch.bmm(gradient, last).view(len(first), n_1, n_2 * r_2)
        torch.bmm(joined_gradient, middle.mT, out=first_gradient)
        middle_gradient.copy_(torch.bmm(first.mT, joined_gradient).unflatten(2, (n_2, r_2)).transpose(1, 2))
        gradients = torch.bmm(product_gradient, pieces.mT), torch.bmm(bases.mT, product_gradient)
        return (*(tensor.view(*ctx.stack, 3, *tensor.shape[1:]) for tensor in gradients), None, None)


def _parts(products: Tensor, sizes: tuple[int, int, int], ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return views (G, n_1, R_1), (G, n_2, R_1, R_2) and (G, n_3, R_2) of factors times pieces (G * 3, n, M)."""
    products = products.unflatten(0, (-1, 3))
    middle = products[:, 1, : sizes[1], : ranks[0] * ranks[1]].unflatten(-1, ranks)
    return products[:, 0, : sizes[0], : ranks[0]], middle, products[:, 2, : sizes[2], : ranks[1]]


class TuckerMap(TwoStageMap):
    """A pointwise map whose weight is the product of d factors and d core pieces."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sizes: tuple[int, ...],
        ranks: tuple[int, ...],
        train: tuple[int, ...],
        **options: Any,
    ):
        super().__init__(in_channels, out_channels, sizes, train, **options)
        self.sizes, self.ranks, self.train_ranks = sizes, ranks, train
        all_ranks = (1, *train, 1)
        self.basis = nn.ParameterList(nn.Parameter(torch.empty(n, s)) for n, s in zip(sizes, ranks, strict=True))
        self.core = nn.ParameterList(
            nn.Parameter(torch.empty(all_ranks[k], s, all_ranks[k + 1])) for k, s in enumerate(ranks)
        )
        factors_first, core_first = rebuild_costs(sizes, ranks, train)
        self.core_first = core_first < factors_first
        self.join_position, self.core_join_position = best_split(sizes, train), best_split(ranks, train)
        self.reset()

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        dims = len(self.sizes)
        if len(factors) == 2:  # as `pad_factors` lays them out
            weight: Tensor = ThreeFactorProduct.apply(*factors, self.sizes, tuple(map(align, self.train_ranks)))
        elif self.core_first and not factors[0].is_cuda:  # a GPU is bound by the number of calls
            core = multiply_train(factors[dims:], self.core_join_position)
            weight = expand_core(core, factors[:dims], self.sizes, self.ranks)
        else:
            left_half, right_half = self.halves(factors, self.join_position)
            weight = (left_half @ right_half).flatten(-2)
        return weight.unflatten(-1, (self.out_channels, self.in_channels))

    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        dims = len(self.sizes)
        cores = [expand_piece(basis, piece) for basis, piece in zip(factors[:dims], factors[dims:], strict=True)]
        return train_halves(cores, position)

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        ranks, all_ranks = [align(rank) for rank in self.ranks], (1, *map(align, self.train_ranks), 1)
        pieces = [(all_ranks[k], rank, all_ranks[k + 1]) for k, rank in enumerate(ranks)]
        return [*zip(self.sizes, ranks, strict=True), *pieces]

    def pad_factors(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Lay out three dimensions as `ThreeFactorProduct` takes them.

        That is all factors in one tensor (G, 3, n, s) and all core pieces in another (G, 3, s, R * R').
        """
        if len(self.sizes) != 3:
            return super().pad_factors(factors)
        like, maps, rank = factors[0], len(factors[0]), align(max(self.ranks))
        all_ranks = (1, *map(align, self.train_ranks), 1)
        bases = like.new_zeros(maps, 3, max(self.sizes), rank)
        pieces = like.new_zeros(maps, 3, rank, all_ranks[1] * all_ranks[2])
        for k, (basis, piece) in enumerate(zip(factors[:3], factors[3:], strict=True)):
            bases[:, k, : basis.shape[1], : basis.shape[2]] = basis
            before, after = all_ranks[k], all_ranks[k + 1]
            part = pieces[:, k, :, : before * after].unflatten(-1, (before, after))
            part[:, : piece.shape[2], : piece.shape[1], : piece.shape[3]] = piece.transpose(1, 2)
        return [bases, pieces]

    def benefits_from_padding(self) -> bool:
        return len(self.sizes) == 3 or super().benefits_from_padding()

    def squared_norm(self) -> Tensor:
        """Compute the core's inner product with itself, each side weighted by the Gram matrix of its factor."""
        weighted = [basis.T @ basis @ piece for basis, piece in zip(self.basis, self.core, strict=True)]
        return train_inner_product(list(self.core), weighted)

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw factors and core pieces of one std, (s / sqrt(prod s_k * prod R_k))^(1/(2d)).

        An entry is a sum of prod(s_k) * prod(R_k) products of 2d numbers.
        """
        factor_std = (std / sqrt(prod(self.ranks) * prod(self.train_ranks))) ** (1 / self.degree())
        for factor in self.factors():
            factor.normal_(std=factor_std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by HOSVD: the leading left vectors of each unfolding, then TT-SVD of the projected core.

        Source: De Lathauwer et al. 2000, "A multilinear singular value decomposition".
        """
        tensor = dense.detach().double().cpu().reshape(self.sizes)
        core = tensor
        for k, (basis, rank) in enumerate(zip(self.basis, self.ranks, strict=True)):
            left_vectors = torch.linalg.svd(tensor.movedim(k, 0).flatten(1), full_matrices=False).U
            vectors = torch.zeros(self.sizes[k], rank, dtype=torch.float64)
            vectors[:, : min(rank, left_vectors.shape[1])] = left_vectors[:, :rank]
            basis.copy_(vectors)
            core = torch.tensordot(vectors.T, core, dims=([1], [k])).movedim(0, k)
        for piece, values in zip(self.core, tt_svd(core, self.train_ranks), strict=True):
            piece.copy_(values)

    def degree(self) -> int:
        return 2 * len(self.sizes)
