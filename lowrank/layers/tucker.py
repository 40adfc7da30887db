"""Tucker with its core kept as a tensor train, as in the study.

Letters: n_k sizes, s_k Tucker ranks, R_k ranks of the core's train; factor k is (n_k, s_k), core piece k is
(R_{k-1}, s_k, R_k) with R_0 = R_d = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lowrank.layers.base import ConvShape, SeparableMethod, StructuredMap
from lowrank.layers.decomposition import (
    MAX_DIMS,
    MIN_DIMS,
    best_split,
    full_ranks,
    multiply_train,
    split_sizes,
    train_params,
    train_product,
    truncated_train,
)
from lowrank.layers.factored import FactoredMap, aligned


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


class TuckerMap(FactoredMap):
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
        super().__init__(in_channels, out_channels, **options)
        self.sizes, self.ranks, self.train_ranks = sizes, ranks, train
        edged = (1, *train, 1)
        self.basis = nn.ParameterList(nn.Parameter(torch.empty(n, s)) for n, s in zip(sizes, ranks, strict=True))
        self.core = nn.ParameterList(nn.Parameter(torch.empty(edged[k], s, edged[k + 1])) for k, s in enumerate(ranks))
        self.cut = best_split(sizes, train)
        self.reset()

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        dims = len(self.sizes)
        cores = [applied(basis, piece) for basis, piece in zip(factors[:dims], factors[dims:], strict=True)]
        return multiply_train(cores, self.cut).unflatten(-1, (self.out_channels, self.in_channels))

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        ranks, edged = [aligned(rank) for rank in self.ranks], (1, *map(aligned, self.train_ranks), 1)
        pieces = [(edged[k], rank, edged[k + 1]) for k, rank in enumerate(ranks)]
        return [*zip(self.sizes, ranks, strict=True), *pieces]

    def squared_norm(self) -> Tensor:
        """The core's product with itself, each of its sides weighed by the Gram matrix of its factor."""
        weighed = [basis.T @ basis @ piece for basis, piece in zip(self.basis, self.core, strict=True)]
        return train_product(list(self.core), weighed)

    def start_factors(self, std: float, generator: torch.Generator | None) -> None:
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
        for piece, found in zip(self.core, truncated_train(core, self.train_ranks), strict=True):
            piece.copy_(found)

    def degree(self) -> int:
        return 2 * len(self.sizes)
