"""CP: the O x I weight, cut into d dimensions, as a sum of R outer products (Hitchcock 1927; Kolda and Bader 2009).

Letters: n_k sizes, R rank; factor k is (n_k, R).

CP factors contracted with the activations in three stages, on a CPU, where a map is large.

Letters: O x I map, R rank, N positions of all images. The first sizes make n = O / p, the last m = I / q, those in
between p * q, so that `W[(n, p), (q, m)] = sum_r a[n, r] b[p, q, r] c[m, r]`. Then

    y[N, r, q] = sum_m c[m, r] x[N, q, m]        R * I mult-adds a position
    z[N, r, p] = sum_q b[p, q, r] y[N, r, q]     R * p * q, a convolution of R groups
    W x        = sum_r a[n, r] z[N, r, p]        R * O

where the weight takes I * O. What is in between is about as wide as the map, so a small one, which waits for memory
rather than for arithmetic, gains nothing. A GPU goes by the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod, sqrt
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, SeparableMethod
from lowrank.layers.factored import aligned
from lowrank.layers.functional import is_unpadded
from lowrank.layers.tensor.tensor_train_ops import MAX_DIMS, MIN_DIMS, best_split, split_sizes
from lowrank.layers.two_stage import TwoStageMap

SWEEPS = 60  # of alternating least squares: at most
RIDGE = 1e-10  # relative to the largest normal-equation entry; keeps nearly parallel columns solvable
MIN_THREE_STAGE_ENTRIES = 2**17
"""Entries of a map from which on three stages pay: at full rank a step of 256 -> 512 on 8 x 8 images takes 0.6 of the
product's time, 1024 -> 1024 on 4 x 4 a third; of 256 -> 256 the same, of 128 -> 256 on 16 x 16 three times as much."""

THREE_STAGE_MIN_RATIO = 0.4  # of the dense mult-adds: where two stages take less, they are faster than three
LEAST = (4, 8)  # p and q: groups of fewer channels have no fast convolution


@lru_cache(maxsize=65536)
def cp_rank(sizes: tuple[int, ...], rank_scale: float) -> int:
    """R = max(1, round(x * min n)), round half to even (RULES)."""
    return max(1, round(rank_scale * min(sizes)))


class CP(SeparableMethod):
    """Depthwise K x K and a pointwise map kept as CP factors over `dims` dimensions."""

    scale: ClassVar[str] = "rank_scale"

    name: Literal["cp"] = "cp"
    dims: int = Field(default=3, ge=MIN_DIMS, le=MAX_DIMS)
    rank_scale: float = Field(default=1.0, gt=0, le=1)

    def structure(self, in_channels: int, out_channels: int) -> tuple[tuple[int, ...], int]:
        """Sizes n_1..n_d and the rank R for an O x I map."""
        sizes = split_sizes(in_channels, out_channels, self.dims)
        return sizes, cp_rank(sizes, self.rank_scale)

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape.in_channels, shape.out_channels))

    def map_params(self, in_channels: int, out_channels: int) -> int:
        sizes, rank = self.structure(in_channels, out_channels)
        return rank * sum(sizes)

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return CPMap(in_channels, out_channels, *self.structure(in_channels, out_channels), **options)


def column_products(factors: Sequence[Tensor]) -> Tensor:
    """The Khatri-Rao product (.., n_1 * .. * n_k, R) of factors (.., n_k, R), row-major over n_1 .. n_k."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)
    return product


def alternating_least_squares(dense: Tensor, rank: int) -> list[Tensor]:
    """CP factors (n_k, R) of a d-dimensional tensor (Kolda and Bader 2009, figure 3.3), in float64.

    Starts from the leading left vectors of each unfolding, filled up with seeded noise where the rank is larger; for
    d = 2 that is the truncated SVD. Stops when a sweep gains less than 1e-9 of the norm.
    """
    unfolded = [dense.movedim(k, 0).flatten(1) for k in range(dense.dim())]
    generator = torch.Generator().manual_seed(0)
    factors = []
    for matrix in unfolded:
        start = torch.randn(matrix.shape[0], rank, dtype=dense.dtype, generator=generator)
        vectors = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
        start[:, : vectors.shape[1]] = vectors
        factors.append(start)
    error = float("inf")
    for _ in range(SWEEPS):
        for k, matrix in enumerate(unfolded):
            others = column_products(factors[:k] + factors[k + 1 :])
            gram = others.T @ others
            gram.diagonal().add_(RIDGE * gram.diagonal().max().clamp_min(1e-30))
            factors[k] = torch.linalg.solve(gram, (matrix @ others).T).T
            left = (matrix - factors[k] @ others.T).norm().item()
        if error - left < 1e-9 * dense.norm().item():
            break
        error = left
    return factors


class Stages(NamedTuple):
    """The first size of the middle, the first one behind it, and the channels p and q of its groups."""

    begin: int
    end: int
    p: int
    q: int


@lru_cache(maxsize=65536)
def cheapest_stages(sizes: tuple[int, ...], in_channels: int, out_channels: int) -> Stages | None:
    """The stages of fewest mult-adds for a map; None where it is small, or its sizes cannot be divided so."""
    if in_channels * out_channels < MIN_THREE_STAGE_ENTRIES:
        return None
    found = []
    for begin in range(1, len(sizes) - 1):
        for end in range(begin + 1, len(sizes)):
            rows, columns = prod(sizes[:begin]), prod(sizes[end:])
            if out_channels % rows == 0 and in_channels % columns == 0:
                found.append(Stages(begin, end, out_channels // rows, in_channels // columns))
    wide = [each for each in found if each.p >= LEAST[0] and each.q >= LEAST[1]]
    return min(wide, key=lambda each: each.p * each.q, default=None)


def contracted(x: Tensor, parts: Sequence[Tensor], p: int, q: int) -> Tensor:
    """(B, I, H, W) times the map of `parts` a (n, R), b (p * q, R) and c (m, R), without its weight -> (B, O, H, W)."""
    a, b, c = parts
    batch, _, height, width = x.shape
    rank = a.shape[1]
    last = x.permute(0, 2, 3, 1).reshape(-1, len(c)) @ c  # rows (N, q)
    y = last.view(-1, q, rank).transpose(1, 2).reshape(batch, height, width, rank * q).permute(0, 3, 1, 2)
    groups = b.view(p, q, rank).permute(2, 0, 1).reshape(rank * p, q, 1, 1)
    z = functional.conv2d(y, groups, groups=rank).permute(0, 2, 3, 1).reshape(-1, rank, p)
    return torch.matmul(a, z).view(batch, height, width, -1).permute(0, 3, 1, 2)


class CPMap(TwoStageMap):
    """A pointwise map whose weight is a sum of R outer products of d vectors."""

    def __init__(self, in_channels: int, out_channels: int, sizes: tuple[int, ...], rank: int, **options: Any):
        ranks = (rank,) * (len(sizes) - 1)
        super().__init__(in_channels, out_channels, sizes, ranks, **options)
        self.sizes, self.rank = sizes, rank
        self.columns = nn.ParameterList(nn.Parameter(torch.empty(size, rank)) for size in sizes)
        self.join_position = best_split(sizes, ranks)
        staged = is_unpadded(self.padding) and self.cost_ratio >= THREE_STAGE_MIN_RATIO
        self.stages = cheapest_stages(sizes, in_channels, out_channels) if staged else None
        self.reset()

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        """Both halves are multiplied out towards the cut and joined last by one matrix product."""
        left, right = self.halves(factors, self.join_position)
        return (left @ right).flatten(-2).unflatten(-1, (self.out_channels, self.in_channels))

    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        return column_products(factors[:position]), column_products(factors[position:]).mT

    def is_contracted(self) -> bool:
        return super().is_contracted() or self.stages is not None

    def _contracted(self, x: Tensor) -> Tensor:
        if self.stages is None:
            return super()._contracted(x)
        begin, end, p, q = self.stages
        ends = (slice(begin), slice(begin, end), slice(end, None))
        parts = [column_products(self.factors()[part]) for part in ends]
        down, across = self.stride
        found = contracted(x[:, :, ::down, ::across], parts, p, q)
        return found if self.bias is None else found + self.bias[:, None, None]

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        return [(size, aligned(self.rank)) for size in self.sizes]

    def squared_norm(self) -> Tensor:
        """The sum over the Hadamard product of the factors' Gram matrices (Kolda and Bader 2009, section 3.4)."""
        return prod(column.T @ column for column in self.columns).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """(s / sqrt(R))^(1/d): a sum of R products of d entries (FACTS)."""
        each = (std / sqrt(self.rank)) ** (1 / self.degree())
        for factor in self.columns:
            factor.normal_(std=each, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Alternating least squares, each component's norm shared evenly between its d vectors."""
        found = alternating_least_squares(dense.detach().double().cpu().reshape(self.sizes), self.rank)
        norms = torch.stack([factor.norm(dim=0).clamp_min(1e-30) for factor in found])  # (d, R)
        shares = norms.log().mean(0).exp() / norms
        for column, factor, share in zip(self.columns, found, shares, strict=True):
            column.copy_(factor * share)

    def degree(self) -> int:
        return len(self.sizes)
