"""Bottleneck: two pointwise maps through r channels, the plainest low-rank form.

    W = up down,  up (O, r),  down (r, I),  r = trunc(x * max(I, O))

Letters: I in-channels, O out-channels, r rank, x `rank_scale`, s the target std of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import FactoredMap, align


class Bottleneck(SeparableMethod):
    """Depthwise K x K and two pointwise maps through r channels.

    With r = trunc(x * max(I, O)) the maps have r * (I + O) parameters and take as many mult-adds a position.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["bottleneck"] = "bottleneck"
    rank_scale: float = Field(default=0.5, gt=0, le=1)

    def rank(self, in_channels: int, out_channels: int) -> int:
        """Return r = trunc(x * max(I, O)); 0 is infeasible."""
        return int(self.rank_scale * max(in_channels, out_channels))

    def infeasible(self, shape: ConvShape) -> str | None:
        if self.rank(shape.in_channels, shape.out_channels) > 0:
            return None
        largest = max(shape.in_channels, shape.out_channels)
        return (
            f"rank trunc({self.rank_scale:g} * {largest}) is 0; `rank_scale` must be at least {smallest_scale(largest)}"
        )

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, self.rank(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        return self.rank(in_channels, out_channels) * (in_channels + out_channels)

    def map_mult_adds(self, in_channels: int, out_channels: int) -> int:
        return self.map_params(in_channels, out_channels)

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return BottleneckMap(in_channels, out_channels, self.rank(in_channels, out_channels), **options)


def prefers_two_convolutions(on_gpu: bool, in_channels: int, rank: int, out_channels: int) -> bool:
    """Return whether two convolutions through r channels are faster than one with the weight built first.

    They are where they need fewer mult-adds, but a GPU has fast kernels only for multiples of 8 channels. An exported
    network keeps the two convolutions, since nobody knows on which device it will run.

    Args:
        on_gpu: whether the images are on a GPU.
        in_channels: I.
        rank: r.
        out_channels: O.
    """
    cheaper = rank * (in_channels + out_channels) < in_channels * out_channels
    aligned = all(channels % 8 == 0 for channels in (in_channels, rank, out_channels))
    return cheaper and (aligned or not on_gpu or torch.compiler.is_exporting())


class BottleneckMap(FactoredMap):
    """A pointwise map through r channels."""

    def __init__(self, in_channels: int, out_channels: int, rank: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.down = nn.Parameter(torch.empty(rank, in_channels))
        self.up = nn.Parameter(torch.empty(out_channels, rank))
        self.reset()

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        down, up = factors
        return up @ down

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        rank = align(self.up.shape[1])
        return [(rank, self.in_channels), (self.out_channels, rank)]

    def builds_weight(self, on_gpu: bool) -> bool:
        return not prefers_two_convolutions(on_gpu, self.in_channels, self.up.shape[1], self.out_channels)

    def squared_norm(self) -> Tensor:
        """Compute trace(A^T A B B^T) for W = A B."""
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw both factors of std sqrt(s / sqrt(r)): an entry is a sum of r products of two numbers."""
        factor_std = sqrt(std / sqrt(self.up.shape[1]))
        for factor in (self.down, self.up):
            factor.normal_(std=factor_std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by truncated SVD, the nearest weight of rank r; the singular values are shared evenly.

        Rows of `down` beyond min(I, O) are random: `up` is zero there, so that they change nothing, but it can train.
        """
        left_vectors, values, right_vectors = torch.linalg.svd(dense.detach().double().cpu(), full_matrices=False)
        rank = min(self.up.shape[1], len(values))
        root = values[:rank].sqrt()
        self.up.zero_()[:, :rank] = (left_vectors[:, :rank] * root).to(self.up)
        self.down[:rank] = (root[:, None] * right_vectors[:rank]).to(self.down)
        noise = torch.randn(self.down[rank:].shape, generator=torch.Generator().manual_seed(0), dtype=root.dtype)
        self.down[rank:] = (noise * (values.mean() / self.in_channels).sqrt()).to(self.down)

    def degree(self) -> int:
        return 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W'), by two convolutions where they are faster than the weight."""
        if self.external_weight is not None or self.builds_weight(x.is_cuda):
            return super().forward(x)
        reduced = functional.conv2d(x, self.down[:, :, None, None], None, self.stride, self.padding)
        return functional.conv2d(reduced, self.up[:, :, None, None], self.bias)


def smallest_scale(channels: int) -> str:
    """Return the smallest `rank_scale` of seven digits that gives a rank of 1.

    Args:
        channels: which the scale multiplies.

    Returns:
        1 / channels, rounded up.
    """
    scale = Decimal(1) / Decimal(channels)
    return f"{Context(prec=7, rounding=ROUND_CEILING).plus(scale).normalize():f}"
