"""Tied bottleneck: one factor, used transposed on the way down and as it is on the way up.

    W = A A^T T,  r = trunc(x * max(I, O))

Letters: I in-channels (I divides O), O out-channels, r rank, x `rank_scale`, A the factor (O, r), T (O, I) the tiling
of I channels to O, a the std of A, s the target std of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import FactoredMap, align
from lowrank.layers.low_rank.bottleneck import prefers_two_convolutions, smallest_scale

MAX_STEPS = 100  # of L-BFGS when fitting a trained weight
SMALL = 1e-2  # entries of columns that would be zero, relative to those of the trained weight's root


class TiedBottleneck(SeparableMethod):
    """Depthwise K x K and a pointwise map W = A A^T T with r = trunc(x * max(I, O)).

    The map has r * O parameters and takes 2 * r * O mult-adds a position. `rank_scale` may also be called `scale`.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["tied_bottleneck"] = "tied_bottleneck"
    rank_scale: float = Field(default=0.5, gt=0, le=1, validation_alias=AliasChoices("rank_scale", "scale"))

    def rank(self, in_channels: int, out_channels: int) -> int:
        """Return r = trunc(x * max(I, O)); 0 is infeasible."""
        return int(self.rank_scale * max(in_channels, out_channels))

    def infeasible(self, shape: ConvShape) -> str | None:
        i, o = shape.in_channels, shape.out_channels
        if o % i:
            return f"the input channels must divide the output channels, but {i} does not divide {o}"
        if self.rank(i, o) > 0:
            return None
        return f"rank trunc({self.rank_scale:g} * {o}) is 0; `rank_scale` must be at least {smallest_scale(o)}"

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, self.rank(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        return self.rank(in_channels, out_channels) * out_channels

    def map_mult_adds(self, in_channels: int, out_channels: int) -> int:
        return 2 * self.map_params(in_channels, out_channels)

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return TiedBottleneckMap(in_channels, out_channels, self.rank(in_channels, out_channels), **options)


class TiedBottleneckMap(FactoredMap):
    """A pointwise map through r channels with one factor for both steps."""

    def __init__(self, in_channels: int, out_channels: int, rank: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.factor = nn.Parameter(torch.empty(out_channels, rank))
        self.reset()

    def down(self) -> Tensor:
        """Compute A^T T (r, I)."""
        return self._sum_tiles(self.factor)

    def _sum_tiles(self, factor: Tensor) -> Tensor:
        """Compute A^T T (.., r, I): tiling the input to O channels equals adding up the O / I blocks of A^T."""
        return factor.mT.unflatten(-1, (-1, self.in_channels)).sum(-2)

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        return factors[0] @ self._sum_tiles(factors[0])

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        return [(self.out_channels, align(self.factor.shape[1]))]

    def builds_weight(self, on_gpu: bool) -> bool:
        return not prefers_two_convolutions(on_gpu, self.in_channels, self.factor.shape[1], self.out_channels)

    def squared_norm(self) -> Tensor:
        """Compute trace(A^T A B B^T) for W = A B with B = A^T T."""
        down = self.down()
        return ((self.factor.T @ self.factor) * (down @ down.T)).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw A of std a with a^4 = s^2 I / (r (r + O + 1)).

        The O diagonal entries of A A^T have the second moment a^4 r (r + 2), the others a^4 r: a^4 r (r + O + 1) / O
        in the mean. T adds up O / I uncorrelated columns.
        """
        rank = self.factor.shape[1]
        moment = std**2 * self.in_channels / (rank * (rank + self.out_channels + 1))
        self.factor.normal_(std=moment**0.25, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by eigenvalues, the nearest positive semidefinite matrix of rank r, then refine by L-BFGS.

        The refinement helps where T makes another matrix the nearest. Columns of A that would be zero start with small
        random numbers instead: the gradient of W = A A^T T is zero at zero.
        """
        target = dense.detach().double().cpu()
        copies = self.out_channels // self.in_channels
        square = target.repeat(1, copies) / copies
        values, vectors = torch.linalg.eigh((square + square.T) / 2)
        rank = self.factor.shape[1]
        root = values[-rank:].clamp_min(0).sqrt()
        unit = target.norm().sqrt() / self.out_channels**0.5  # of an entry of A in a W as large as the target
        noise = torch.randn(len(vectors), rank, generator=torch.Generator().manual_seed(0), dtype=target.dtype)
        noise = noise * SMALL * unit
        self.factor.copy_(_refine(torch.where(root > 0, vectors[:, -rank:] * root, noise), target, noise))

    def degree(self) -> int:
        return 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W'), by two convolutions where they are faster than the weight."""
        if self.external_weight is not None or self.builds_weight(x.is_cuda):
            return super().forward(x)
        reduced = functional.conv2d(x, self.down()[:, :, None, None], None, self.stride, self.padding)
        return functional.conv2d(reduced, self.factor[:, :, None, None], self.bias)


def _refine(initial: Tensor, target: Tensor, small: Tensor) -> Tensor:
    """Return A (O, r) after L-BFGS on ||A A^T T - target||^2, or `small` where even zero is nearer."""
    factor = initial.clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = torch.optim.LBFGS([factor], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight = factor @ factor.T.unflatten(1, (-1, target.shape[1])).sum(1)
        value = (weight - target).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
        final = loss()
    return factor.detach() if final < target.square().sum() else small
