"""CP: the O x I weight, seen as a tensor of d dimensions, as a sum of R outer products.

    W[j_1, .., j_d] = sum_r U_1[j_1, r] * .. * U_d[j_d, r]

Source: Hitchcock 1927, "The expression of a tensor or a polyadic as a sum of products"; Kolda and Bader 2009, "Tensor
decompositions and applications"; for layers Lebedev et al. 2015, "Speeding-up convolutional neural networks using
fine-tuned CP-decomposition".

Where a map is large, a CPU contracts the factors with the activations in three stages. The first sizes make
n = O / p, the last m = I / q, those in between p * q, so that `W[(n, p), (q, m)] = sum_r a[n, r] b[p, q, r] c[m, r]`:

    y[N, r, q] = sum_m c[m, r] x[N, q, m]        R * I mult-adds a position
    z[N, r, p] = sum_q b[p, q, r] y[N, r, q]     R * p * q, a convolution of R groups
    W x        = sum_r a[n, r] z[N, r, p]        R * O

where the weight takes I * O. What is in between is about as wide as the map, so a small map, which waits for memory
and not for arithmetic, gains nothing. A GPU uses the weight.

Letters: I in-channels, O out-channels, B batch, H x W positions, N positions of all images, n_k sizes with
n_1 * .. * n_d = I * O, R rank; factor U_k is (n_k, R). `..` is a stack of maps, or nothing. x is `rank_scale`.
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
from lowrank.layers.factored import align
from lowrank.layers.functional import is_unpadded
from lowrank.layers.tensor.tensor_train_ops import MAX_DIMS, MIN_DIMS, best_split, split_sizes
from lowrank.layers.two_stage import TwoStageMap

MAX_SWEEPS = 60  # of alternating least squares
RIDGE = 1e-10  # relative to the largest normal-equation entry; keeps nearly parallel columns solvable

# Three stages are faster from this many entries of a map on. At full rank a step of 256 -> 512 on 8 x 8 images takes
# 0.6 of the product's time, 1024 -> 1024 on 4 x 4 a third; 256 -> 256 takes the same, 128 -> 256 on 16 x 16 three times
# as much.
MIN_THREE_STAGE_ENTRIES = 2**17
THREE_STAGE_MIN_RATIO = 0.4  # of the dense mult-adds: where two stages take less, they are faster than three
MIN_GROUP_CHANNELS = (4, 8)  # of p and q: groups of fewer channels have no fast convolution


@lru_cache(maxsize=65536)
def cp_rank(sizes: tuple[int, ...], rank_scale: float) -> int:
    """Return the rank R = max(1, round(x * min n_k)), round half to even."""
    return max(1, round(rank_scale * min(sizes)))


class CP(SeparableMethod):
    """Depthwise K x K and a pointwise map of CP factors over `dims` dimensions.

    The map has R * sum n_k parameters and is charged I * O mult-adds a position.
    """

    scale: ClassVar[str] = "rank_scale"

    name: Literal["cp"] = "cp"
    dims: int = Field(default=3, ge=MIN_DIMS, le=MAX_DIMS)
    rank_scale: float = Field(default=1.0, gt=0, le=1)

    def structure(self, in_channels: int, out_channels: int) -> tuple[tuple[int, ...], int]:
        """Return sizes n_1..n_d and the rank R for an O x I map."""
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
    """Multiply factors column by column: the Khatri-Rao product.

    Args:
        factors: (.., n_k, R).

    Returns:
        (.., n_1 * .. * n_k, R), row-major over n_1 .. n_k.
    """
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)
    return product


def alternating_least_squares(dense: Tensor, rank: int) -> list[Tensor]:
    """Fit CP factors to a tensor by alternating least squares (Kolda and Bader 2009, figure 3.3).

    Starts from the leading left vectors of each unfolding, filled up with seeded noise where the rank is larger; for
    d = 2 that is the truncated SVD. Stops when a sweep gains less than 1e-9 of the norm.

    Args:
        dense: (n_1, .., n_d), float64.
        rank: R.

    Returns:
        Factors (n_k, R).
    """
    unfolded = [dense.movedim(k, 0).flatten(1) for k in range(dense.dim())]
    generator = torch.Generator().manual_seed(0)
    factors = []
    for matrix in unfolded:
        initial = torch.randn(matrix.shape[0], rank, dtype=dense.dtype, generator=generator)
        vectors = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
        initial[:, : vectors.shape[1]] = vectors
        factors.append(initial)
    last_error = float("inf")
    for _ in range(MAX_SWEEPS):
        for k, matrix in enumerate(unfolded):
            others = column_products(factors[:k] + factors[k + 1 :])
            gram = others.T @ others
            gram.diagonal().add_(RIDGE * gram.diagonal().max().clamp_min(1e-30))
            factors[k] = torch.linalg.solve(gram, (matrix @ others).T).T
            error = (matrix - factors[k] @ others.T).norm().item()
        if last_error - error < 1e-9 * dense.norm().item():
            break
        last_error = error
    return factors


class Stages(NamedTuple):
    """How sizes are shared among three stages: sizes [:begin], [begin:end] and [end:]."""

    begin: int
    end: int
    p: int  # out-channels of a group of the second stage
    q: int  # in-channels of such a group


@lru_cache(maxsize=65536)
def cheapest_stages(sizes: tuple[int, ...], in_channels: int, out_channels: int) -> Stages | None:
    """Find the three stages of fewest mult-adds for a map.

    Args:
        sizes: n_1 .. n_d.
        in_channels: I.
        out_channels: O.

    Returns:
        None where the map is too small, or its sizes do not divide the channels so.
    """
    if in_channels * out_channels < MIN_THREE_STAGE_ENTRIES:
        return None
    candidates = []
    for begin in range(1, len(sizes) - 1):
        for end in range(begin + 1, len(sizes)):
            rows, columns = prod(sizes[:begin]), prod(sizes[end:])
            if out_channels % rows == 0 and in_channels % columns == 0:
                candidates.append(Stages(begin, end, out_channels // rows, in_channels // columns))
    min_p, min_q = MIN_GROUP_CHANNELS
    wide = [stages for stages in candidates if stages.p >= min_p and stages.q >= min_q]
    return min(wide, key=lambda stages: stages.p * stages.q, default=None)


def apply_stages(x: Tensor, parts: Sequence[Tensor], p: int, q: int) -> Tensor:
    """Apply a map in three stages, without its weight; the formula is at the head of this file.

    Args:
        x: (B, I, H, W).
        parts: a (n, R), b (p * q, R) and c (m, R).
        p: out-channels of a group of the second stage.
        q: in-channels of such a group.

    Returns:
        (B, O, H, W).
    """
    a, b, c = parts
    batch, _, height, width = x.shape
    rank = a.shape[1]
    projected = x.permute(0, 2, 3, 1).reshape(-1, len(c)) @ c  # rows (N, q)
    y = projected.view(-1, q, rank).transpose(1, 2).reshape(batch, height, width, rank * q).permute(0, 3, 1, 2)
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

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        """Multiply out both halves towards a cut, then join them by one matrix product."""
        left_half, right_half = self.halves(factors, self.join_position)
        return (left_half @ right_half).flatten(-2).unflatten(-1, (self.out_channels, self.in_channels))

    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        return column_products(factors[:position]), column_products(factors[position:]).mT

    def contracts_on_cpu(self) -> bool:
        return super().contracts_on_cpu() or self.stages is not None

    def _contract(self, x: Tensor) -> Tensor:
        if self.stages is None:
            return super()._contract(x)
        begin, end, p, q = self.stages
        ranges = (slice(begin), slice(begin, end), slice(end, None))
        parts = [column_products(self.factors()[dims]) for dims in ranges]
        down, across = self.stride
        y = apply_stages(x[:, :, ::down, ::across], parts, p, q)
        return y if self.bias is None else y + self.bias[:, None, None]

    def aligned_shapes(self) -> list[tuple[int, ...]]:
        return [(size, align(self.rank)) for size in self.sizes]

    def squared_norm(self) -> Tensor:
        """Sum the product of the factors' Gram matrices, entry by entry (Kolda and Bader 2009, section 3.4)."""
        return prod(column.T @ column for column in self.columns).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw factors of std (s / sqrt(R))^(1/d): an entry is a sum of R products of d numbers."""
        factor_std = (std / sqrt(self.rank)) ** (1 / self.degree())
        for factor in self.columns:
            factor.normal_(std=factor_std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by alternating least squares; each component's norm is shared evenly between its d vectors."""
        factors = alternating_least_squares(dense.detach().double().cpu().reshape(self.sizes), self.rank)
        norms = torch.stack([factor.norm(dim=0).clamp_min(1e-30) for factor in factors])  # (d, R)
        gains = norms.log().mean(0).exp() / norms
        for column, factor, gain in zip(self.columns, factors, gains, strict=True):
            column.copy_(factor * gain)

    def degree(self) -> int:
        return len(self.sizes)
