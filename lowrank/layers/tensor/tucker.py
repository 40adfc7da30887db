"""Tucker with its core kept as a tensor train, as in the study.

Letters: n_k sizes, s_k Tucker ranks, R_k ranks of the core's train; factor k is (n_k, s_k), core piece k is
(R_{k-1}, s_k, R_k) with R_0 = R_d = 1.
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
from lowrank.layers.factored import aligned
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
    """Tucker ranks s_1..s_d and train ranks R_1..R_{d-1} of the core (RULES)."""
    wanted = [max(1, round(rank_scale * size)) for size in sizes]
    train = [1, *full_ranks(sizes), 1]
    ranks = [0] * len(sizes)
    for k in range(len(sizes) - 1, -1, -1):  # piece k lies between train[k] and train[k + 1]
        ranks[k] = min(wanted[k], sizes[k], train[k] * train[k + 1])
        if k > 0:
            train[k] = min(train[k], ranks[k] * train[k + 1])
    return tuple(ranks), tuple(train[1:-1])


class Tucker(SeparableMethod):
    """Depthwise K x K and a pointwise map kept as Tucker factors and a core in train form."""

    scale: ClassVar[str] = "rank_scale"

    name: Literal["tucker"] = "tucker"
    dims: int = Field(default=3, ge=MIN_DIMS, le=MAX_DIMS)
    rank_scale: float = Field(default=1.0, gt=0, le=1)

    def structure(
        self, in_channels: int, out_channels: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Sizes n_k, Tucker ranks s_k and the core's interior train ranks R_k for an O x I map."""
        sizes = split_sizes(in_channels, out_channels, self.dims)
        return sizes, *tucker_ranks(sizes, self.rank_scale)

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        sizes, ranks, train = self.structure(in_channels, out_channels)
        return train_params(ranks, train) + sum(size * rank for size, rank in zip(sizes, ranks, strict=True))

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return TuckerMap(in_channels, out_channels, *self.structure(in_channels, out_channels), **options)


def applied(basis: Tensor, piece: Tensor) -> Tensor:
    """A factor (.., n, s) on a core piece (.., R, s, R'): (.., R, n, R'); the ends of the train as plain products."""
    if piece.shape[-3] == 1:
        return (basis @ piece.squeeze(-3)).unsqueeze(-3)
    if piece.shape[-1] == 1:
        return (piece.squeeze(-1) @ basis.mT).unsqueeze(-1)
    return basis.unsqueeze(-3) @ piece


def expansion_order(ranks: Sequence[int]) -> list[int]:
    """In which order factors spread a core: the ends last, for which nothing is copied, the smaller rank at the end."""
    last = len(ranks) - 1
    return [*range(1, last), *((last, 0) if ranks[0] <= ranks[last] else (0, last))]


def spread(core: Tensor, bases: Sequence[Tensor], sizes: Sequence[int], ranks: Sequence[int]) -> Tensor:
    """A core (.., s_1 * .. * s_d) by factors (.., n_k, s_k): (.., N), by plain products."""
    found = list(ranks)
    for k in expansion_order(ranks):
        before, after = prod(found[:k]), prod(found[k + 1 :])
        if k == len(ranks) - 1:
            core = (core.unflatten(-1, (before, ranks[k])) @ bases[k].mT).flatten(-2)
        elif k == 0:
            core = (bases[k] @ core.unflatten(-1, (ranks[k], after))).flatten(-2)
        else:
            rows = core.unflatten(-1, (before, ranks[k], after)).transpose(-3, -2).flatten(-2)
            core = (bases[k] @ rows).unflatten(-1, (before, after)).transpose(-3, -2).flatten(-3)
        found[k] = sizes[k]
    return core


@lru_cache(maxsize=65536)
def rebuild_costs(sizes: tuple[int, ...], ranks: tuple[int, ...], train: tuple[int, ...]) -> tuple[int, int]:
    """Mult-adds of multiplying the weight out: factors into core pieces first, or the core first."""
    edges = pairwise((1, *train, 1))
    pieces = sum(left * n * s * right for (left, right), n, s in zip(edges, sizes, ranks, strict=True))
    found, spreading = list(ranks), 0
    for k in expansion_order(ranks):
        spreading += prod(found) * sizes[k]
        found[k] = sizes[k]
    return pieces + train_cost(sizes, train), train_cost(ranks, train) + spreading


class ThreeFactorProduct(torch.autograd.Function):
    """Weights (.., N) of three factors (.., 3, n, s) and core pieces (.., 3, s, M), padded with zeros.

    Piece k holds (R_{k-1}, R_k) in its last dimension. One batched product applies all factors; the gradient goes back
    into one tensor, by views, so that two batched products give those of all factors and all pieces.
    """

    @staticmethod
    def forward(ctx: Any, bases: Tensor, pieces: Tensor, sizes: tuple[int, int, int], ranks: tuple[int, int]) -> Tensor:
        stack = bases.shape[:-3]
        bases, pieces = bases.reshape(-1, *bases.shape[-2:]), pieces.reshape(-1, *pieces.shape[-2:])
        left, middle, right = _parts(torch.bmm(bases, pieces), sizes, ranks)
        middle = middle.transpose(1, 2).flatten(2)  # (G, R_1, n_2 * R_2)
        joined = torch.bmm(left, middle).view(len(left), -1, ranks[1])  # (G, n_1 * n_2, R_2)
        ctx.save_for_backward(bases, pieces, left, middle, right, joined)
        ctx.sizes, ctx.ranks, ctx.stack = sizes, ranks, stack
        return torch.bmm(joined, right.mT).view(*stack, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bases, pieces, left, middle, right, joined = ctx.saved_tensors
        (n_1, n_2, n_3), (_, r_2) = ctx.sizes, ctx.ranks
        gradient = gradient.reshape(len(left), n_1 * n_2, n_3)
        products = bases.new_zeros(len(bases), bases.shape[1], pieces.shape[2])
        by_left, by_middle, by_right = _parts(products, ctx.sizes, ctx.ranks)
        torch.bmm(gradient.mT, joined, out=by_right)
        by_joined = torch.bmm(gradient, right).view(len(left), n_1, n_2 * r_2)
        torch.bmm(by_joined, middle.mT, out=by_left)
        by_middle.copy_(torch.bmm(left.mT, by_joined).unflatten(2, (n_2, r_2)).transpose(1, 2))
        found = torch.bmm(products, pieces.mT), torch.bmm(bases.mT, products)
        return (*(each.view(*ctx.stack, 3, *each.shape[1:]) for each in found), None, None)


def _parts(products: Tensor, sizes: tuple[int, int, int], ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Views (G, n_1, R_1), (G, n_2, R_1, R_2) and (G, n_3, R_2) of factors times pieces (G * 3, n, M)."""
    products = products.unflatten(0, (-1, 3))
    middle = products[:, 1, : sizes[1], : ranks[0] * ranks[1]].unflatten(-1, ranks)
    return products[:, 0, : sizes[0], : ranks[0]], middle, products[:, 2, : sizes[2], : ranks[1]]


class TuckerMap(TwoStageMap):
    """A pointwise map whose weight is multiplied out of d factors and d core pieces."""

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
        edged = (1, *train, 1)
        self.basis = nn.ParameterList(nn.Parameter(torch.empty(n, s)) for n, s in zip(sizes, ranks, strict=True))
        self.core = nn.ParameterList(nn.Parameter(torch.empty(edged[k], s, edged[k + 1])) for k, s in enumerate(ranks))
        factors_first, core_first = rebuild_costs(sizes, ranks, train)
        self.core_first = core_first < factors_first
        self.join_position, self.core_join_position = best_split(sizes, train), best_split(ranks, train)
        self.reset()

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        dims = len(self.sizes)
        if len(factors) == 2:  # as `filled` lays them out
            found: Tensor = ThreeFactorProduct.apply(*factors, self.sizes, tuple(map(aligned, self.train_ranks)))
            return found.unflatten(-1, (self.out_channels, self.in_channels))
        if self.core_first and not factors[0].is_cuda:  # a GPU is bound by the number of calls
            core = multiply_train(factors[dims:], self.core_join_position)
            whole = spread(core, factors[:dims], self.sizes, self.ranks)
            return whole.unflatten(-1, (self.out_channels, self.in_channels))
        left, right = self.halves(factors, self.join_position)
        return (left @ right).flatten(-2).unflatten(-1, (self.out_channels, self.in_channels))

    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        dims = len(self.sizes)
        cores = [applied(basis, piece) for basis, piece in zip(factors[:dims], factors[dims:], strict=True)]
        return train_halves(cores, position)

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        ranks, edged = [aligned(rank) for rank in self.ranks], (1, *map(aligned, self.train_ranks), 1)
        pieces = [(edged[k], rank, edged[k + 1]) for k, rank in enumerate(ranks)]
        return [*zip(self.sizes, ranks, strict=True), *pieces]

    def filled(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """For `ThreeFactorProduct` all factors (G, 3, n, s) and all core pieces (G, 3, s, R * R'), where d is 3."""
        if len(self.sizes) != 3:
            return super().filled(factors)
        like, maps, rank = factors[0], len(factors[0]), aligned(max(self.ranks))
        edged = (1, *map(aligned, self.train_ranks), 1)
        bases = like.new_zeros(maps, 3, max(self.sizes), rank)
        pieces = like.new_zeros(maps, 3, rank, edged[1] * edged[2])
        for k, (basis, piece) in enumerate(zip(factors[:3], factors[3:], strict=True)):
            bases[:, k, : basis.shape[1], : basis.shape[2]] = basis
            part = pieces[:, k, :, : edged[k] * edged[k + 1]].unflatten(-1, (edged[k], edged[k + 1]))
            part[:, : piece.shape[2], : piece.shape[1], : piece.shape[3]] = piece.transpose(1, 2)
        return [bases, pieces]

    def benefits_from_padding(self) -> bool:
        return len(self.sizes) == 3 or super().benefits_from_padding()

    def squared_norm(self) -> Tensor:
        """The core's product with itself, each of its sides weighed by the Gram matrix of its factor."""
        weighed = [basis.T @ basis @ piece for basis, piece in zip(self.basis, self.core, strict=True)]
        return train_inner_product(list(self.core), weighed)

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """One std for factors and core pieces: (s / sqrt(prod s_k * prod interior R_k))^(1/(2d)) (FACTS)."""
        common = (std / sqrt(prod(self.ranks) * prod(self.train_ranks))) ** (1 / self.degree())
        for factor in self.factors():
            factor.normal_(std=common, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """HOSVD: the leading left vectors of each unfolding, then TT-SVD of the projected core."""
        tensor = dense.detach().double().cpu().reshape(self.sizes)
        core = tensor
        for k, (basis, rank) in enumerate(zip(self.basis, self.ranks, strict=True)):
            left = torch.linalg.svd(tensor.movedim(k, 0).flatten(1), full_matrices=False).U
            vectors = torch.zeros(self.sizes[k], rank, dtype=torch.float64)
            vectors[:, : min(rank, left.shape[1])] = left[:, :rank]
            basis.copy_(vectors)
            core = torch.tensordot(vectors.T, core, dims=([1], [k])).movedim(0, k)
        for piece, found in zip(self.core, tt_svd(core, self.train_ranks), strict=True):
            piece.copy_(found)

    def degree(self) -> int:
        return 2 * len(self.sizes)
