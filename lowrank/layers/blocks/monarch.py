"""Monarch: two block-diagonal factors with a permutation between them (Dao et al. 2022, "Monarch: expressive structured
matrices"); with a rank of its own in each block it is the two-core block tensor-train (Qiu et al. 2024).

Letters: I = P * Q in-channels, O = S * U out-channels, P blocks of inputs, U blocks of outputs, r rank of a block.
The weight seen as (S, U, P, Q) has for each of its U * P blocks an S x Q matrix of rank r.
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
from lowrank.layers.factored import FactoredMap, aligned


@cache
def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is <= most."""
    return next(divisor for divisor in range(min(n, most), 0, -1) if n % divisor == 0)


class Monarch(SeparableMethod):
    """Depthwise K x K and a pointwise map of two block-diagonal factors.

    Rule of this project (not of the study): P is the largest divisor of I, and U that of O, not above `blocks`, by
    default not above the square root of I or O. With Q = I / P and S = O / U the rank is r = max(1, round(x *
    min(S, Q))), and the map has r * (U*I + P*O) parameters: P blocks of (U*r) x Q and U blocks of S x (P*r). It is
    charged min(I*O, r * (U*I + P*O)) mult-adds a position, the cheaper of applying the weight or the factors in turn.
    Every shape admits it; a prime number of channels is one block. One block on both sides is a bottleneck.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["monarch"] = "monarch"
    blocks: int | None = Field(default=None, ge=1, le=4096)
    rank_scale: float = Field(default=0.05, gt=0, le=1)

    def structure(self, in_channels: int, out_channels: int) -> tuple[int, int, int]:
        """P, U and r for an O x I map."""
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
    """A pointwise map whose weight is rebuilt block by block in one batched product."""

    def __init__(self, in_channels: int, out_channels: int, inner: int, outer: int, rank: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.inner, self.outer = inner, outer
        self.first = nn.Parameter(torch.empty(outer * inner, rank, in_channels // inner))  # (U * P, r, Q)
        self.second = nn.Parameter(torch.empty(outer * inner, out_channels // outer, rank))  # (U * P, S, r)
        self.reset()

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        first, second = factors
        blocks = (second @ first).unflatten(-3, (self.outer, self.inner))  # (.., U, P, S, Q)
        ordered = blocks.movedim(-2, -4)  # (.., S, U, P, Q)
        return ordered.reshape(*ordered.shape[:-4], self.out_channels, self.in_channels)

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        (blocks, rank, inside), (_, outside, _) = self.first.shape, self.second.shape
        return [(blocks, aligned(rank), inside), (blocks, outside, aligned(rank))]

    def squared_norm(self) -> Tensor:
        """The blocks lie side by side: the sum of their norms, each as for a bottleneck."""
        return ((self.second.mT @ self.second) * (self.first @ self.first.mT)).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """s_a * s_b = s / sqrt(r), as for a bottleneck: every entry is a sum of r products."""
        each = sqrt(std / sqrt(self.first.shape[1]))
        for factor in (self.first, self.second):
            factor.normal_(std=each, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """The nearest: a truncated SVD of each block (Dao et al. 2022, section 3.3)."""
        sizes = (self.second.shape[1], self.outer, self.inner, self.first.shape[2])
        blocks = dense.detach().double().cpu().reshape(sizes).permute(1, 2, 0, 3).flatten(0, 1)
        left, values, right = torch.linalg.svd(blocks, full_matrices=False)
        rank = self.first.shape[1]
        root = values[:, :rank].sqrt()
        self.second.copy_(left[:, :, :rank] * root[:, None])
        self.first.copy_(root[:, :, None] * right[:, :rank])

    def degree(self) -> int:
        return 2
