"""Monarch: two block-diagonal factors with a permutation between them.

The weight seen as (S, U, P, Q) has for each of its U * P blocks an S x Q matrix of rank r:

    W[(s, u), (p, q)] = sum_a second[u, p, s, a] first[u, p, a, q]

Source: Dao et al. 2022, "Monarch: expressive structured matrices for efficient and accurate training". With a rank in
each block it is the two-core block tensor-train of Qiu et al. 2024, "Compute better spent: replacing dense layers with
structured matrices".

Letters: I = P * Q in-channels, O = S * U out-channels, P blocks of inputs, U blocks of outputs, r rank of a block, x
`rank_scale`. `..` is a stack of maps, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import FactoredMap, align


@cache
def largest_divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n that is <= limit."""
    return next(divisor for divisor in range(min(n, limit), 0, -1) if n % divisor == 0)


class Monarch(SeparableMethod):
    """Depthwise K x K and a pointwise map of two block-diagonal factors.

    P is the largest divisor of I, and U that of O, that is at most `blocks`, by default at most the square root of I
    or O. With Q = I / P and S = O / U the rank is r = max(1, round(x * min(S, Q))), and the map has r * (U*I + P*O)
    parameters: P blocks of (U*r) x Q and U blocks of S x (P*r). It is charged min(I*O, r * (U*I + P*O)) mult-adds a
    position, the cheaper of applying the weight and applying the factors in turn. This is a rule of this project, not
    of the study of 2018-19. Every shape is feasible; a prime number of channels is one block. One block on both sides
    is a bottleneck.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["monarch"] = "monarch"
    blocks: int | None = Field(default=None, ge=1, le=4096)
    rank_scale: float = Field(default=0.05, gt=0, le=1)

    def structure(self, in_channels: int, out_channels: int) -> tuple[int, int, int]:
        """Return P, U and r for an O x I map."""
        inner, outer = (
            largest_divisor(channels, self.blocks or isqrt(channels)) for channels in (in_channels, out_channels)
        )
        rank = max(1, round(self.rank_scale * min(out_channels // outer, in_channels // inner)))
        return inner, outer, rank

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        inner, outer, rank = self.structure(in_channels, out_channels)
        return rank * (outer * in_channels + inner * out_channels)

    def map_mult_adds(self, in_channels: int, out_channels: int) -> int:
        return min(in_channels * out_channels, self.map_params(in_channels, out_channels))

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return MonarchMap(in_channels, out_channels, *self.structure(in_channels, out_channels), **options)


class MonarchMap(FactoredMap):
    """A pointwise map whose weight is computed block by block in one batched product."""

    def __init__(self, in_channels: int, out_channels: int, inner: int, outer: int, rank: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.inner, self.outer = inner, outer
        self.first = nn.Parameter(torch.empty(outer * inner, rank, in_channels // inner))  # (U * P, r, Q)
        self.second = nn.Parameter(torch.empty(outer * inner, out_channels // outer, rank))  # (U * P, S, r)
        self.reset()

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        first, second = factors
        blocks = (second @ first).unflatten(-3, (self.outer, self.inner))  # (.., U, P, S, Q)
        ordered = blocks.movedim(-2, -4)  # (.., S, U, P, Q)
        return ordered.reshape(*ordered.shape[:-4], self.out_channels, self.in_channels)

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        (blocks, rank, block_inputs), (_, block_outputs, _) = self.first.shape, self.second.shape
        return [(blocks, align(rank), block_inputs), (blocks, block_outputs, align(rank))]

    def squared_norm(self) -> Tensor:
        """Sum the squared norms of the blocks, which do not overlap; each is that of a bottleneck."""
        return ((self.second.mT @ self.second) * (self.first @ self.first.mT)).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw both factors of std sqrt(s / sqrt(r)): an entry is a sum of r products of two numbers."""
        factor_std = sqrt(std / sqrt(self.first.shape[1]))
        for factor in (self.first, self.second):
            factor.normal_(std=factor_std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by a truncated SVD of each block, the nearest such weight (Dao et al. 2022, section 3.3)."""
        sizes = (self.second.shape[1], self.outer, self.inner, self.first.shape[2])
        blocks = dense.detach().double().cpu().reshape(sizes).permute(1, 2, 0, 3).flatten(0, 1)
        left_vectors, values, right_vectors = torch.linalg.svd(blocks, full_matrices=False)
        rank = self.first.shape[1]
        root = values[:, :rank].sqrt()
        self.second.copy_(left_vectors[:, :, :rank] * root[:, None])
        self.first.copy_(root[:, :, None] * right_vectors[:, :rank])

    def degree(self) -> int:
        return 2
