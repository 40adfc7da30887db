"""Tensor train: the O x I weight as a chain of d small tensors, its cores.

W seen as a tensor of sizes n_1 .. n_d has the entries

    W[j_1, .., j_d] = G_1[:, j_1, :] G_2[:, j_2, :] .. G_d[:, j_d, :]

Source: Oseledets 2011, "Tensor-train decomposition"; for layers Novikov et al. 2015, "Tensorizing neural networks".

Letters: I in-channels, O out-channels, n_k sizes with n_1 * .. * n_d = I * O, r_k ranks; core G_k is (r_{k-1}, n_k,
r_k) with r_0 = r_d = 1. x is `rank_scale`.
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

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import align
from lowrank.layers.tensor.tensor_train_ops import (
    MAX_DIMS,
    MIN_DIMS,
    best_split,
    multiply_train,
    split_sizes,
    train_halves,
    train_inner_product,
    train_params,
    tt_svd,
)
from lowrank.layers.two_stage import TwoStageMap


@lru_cache(maxsize=65536)
def tensor_train_ranks(sizes: tuple[int, ...], rank_scale: float) -> tuple[int, ...]:
    """Return the ranks r_k = max(1, round(x * min(n_k, n_{k+1}))), k = 1..d-1, round half to even."""
    return tuple(max(1, round(rank_scale * min(pair))) for pair in pairwise(sizes))


class TensorTrain(SeparableMethod):
    """Depthwise K x K and a pointwise map of a tensor train of `dims` cores.

    The map has sum r_{k-1} * n_k * r_k parameters and is charged I * O mult-adds a position.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["tensor_train"] = "tensor_train"
    dims: int = Field(default=3, ge=MIN_DIMS, le=MAX_DIMS)
    rank_scale: float = Field(default=1.0, gt=0, le=1)

    def structure(self, in_channels: int, out_channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return sizes n_1..n_d and ranks r_1..r_{d-1} for an O x I map."""
        sizes = split_sizes(in_channels, out_channels, self.dims)
        return sizes, tensor_train_ranks(sizes, self.rank_scale)

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        return train_params(*self.structure(in_channels, out_channels))

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return TensorTrainMap(in_channels, out_channels, *self.structure(in_channels, out_channels), **options)


class TensorTrainMap(TwoStageMap):
    """A pointwise map whose weight is the product of d cores."""

    def __init__(
        self, in_channels: int, out_channels: int, sizes: tuple[int, ...], ranks: tuple[int, ...], **options: Any
    ):
        super().__init__(in_channels, out_channels, sizes, ranks, **options)
        self.sizes, self.ranks = sizes, ranks
        all_ranks = (1, *ranks, 1)
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(all_ranks[k], size, all_ranks[k + 1])) for k, size in enumerate(sizes)
        )
        self.join_position = best_split(sizes, ranks)
        self.reset()

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        return multiply_train(factors, self.join_position).unflatten(-1, (self.out_channels, self.in_channels))

    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        return train_halves(factors, position)

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        all_ranks = (1, *map(align, self.ranks), 1)
        return [(all_ranks[k], size, all_ranks[k + 1]) for k, size in enumerate(self.sizes)]

    def squared_norm(self) -> Tensor:
        """Compute the train's inner product with itself, core by core (Oseledets 2011, section 4.2)."""
        return train_inner_product(list(self.cores), list(self.cores))

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw cores of std (s / sqrt(prod r_k))^(1/d): an entry is a sum of prod(r_k) products of d numbers."""
        core_std = (std / sqrt(prod(self.ranks))) ** (1 / self.degree())
        for core in self.cores:
            core.normal_(std=core_std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Set the cores by TT-SVD."""
        for core, values in zip(self.cores, tt_svd(dense.reshape(self.sizes), self.ranks), strict=True):
            core.copy_(values)

    def degree(self) -> int:
        return len(self.sizes)
