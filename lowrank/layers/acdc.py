"""ACDC: L layers of diagonal, cosine transform, diagonal, inverse transform (Moczulski et al. 2016, "ACDC: a structured
efficient linear layer"), with a riffle of the channels between layers.

Letters: I in-channels, O out-channels, N = max(I, O) width, L layers, C the orthonormal DCT-II, T the tiling of the
input (N, I), S the grouped sum of outputs (O, N).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import log2, pi, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lowrank.layers.base import ConvShape, Method, SeparableMethod, StructuredMap

START_STD = 0.1  # of the diagonals about 1 (q in FACTS)
SWEEPS = 4  # over all diagonals when starting from a trained weight; each costs about 12 L products of N x N
RIDGE = 1e-9
MAX_LAYERS = 256


class ACDC(SeparableMethod):
    """Depthwise K x K and a pointwise map of `layers` real layers (the study's "ACDC n" ran n - 1)."""

    largest: ClassVar[int] = MAX_LAYERS

    name: Literal["acdc"] = "acdc"
    layers: int = Field(default=11, ge=1, le=MAX_LAYERS)

    def infeasible(self, shape: ConvShape) -> str | None:
        i, o = shape.in_channels, shape.out_channels
        if i > o and i % o:
            return f"more input than output channels must be a multiple of them, but {o} does not divide {i}"
        return None

    def map_params(self, in_channels: int, out_channels: int) -> int:
        return 2 * max(in_channels, out_channels) * self.layers

    def mult_adds(self, shape: ConvShape) -> int:
        """Depthwise and L * (4N + 5N log2 N) at each position: of the input if K > 1, else of the output (RULES)."""
        width = max(shape.in_channels, shape.out_channels)
        area = shape.in_area if shape.kernel_area > 1 else shape.out_area
        per_position = self.layers * (4 * width + 5 * width * log2(width))
        return shape.depthwise_params * shape.out_area + round(per_position * area)

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return ACDCMap(in_channels, out_channels, self.layers, **options)

    def settings_by_size(self, shapes: Iterable[ConvShape]) -> Iterable[Method]:
        return (self.model_copy(update={"layers": layers}) for layers in range(1, self.largest + 1))


@lru_cache(maxsize=64)
def cosines(width: int) -> Tensor:
    """(N, N + 1): c_n^2 cos(pi n m / N), with c_0^2 = 1/N and c_n^2 = 2/N; takes a diagonal to `sandwich`'s sums."""
    index = torch.arange(width + 1, dtype=torch.float64, device="cpu")
    weights = torch.full((width, 1), 2 / width, dtype=torch.float64, device="cpu")
    weights[0] = 1 / width
    return weights * torch.cos(pi / width * index[:width, None] * index)


def sandwich(sums: Tensor) -> Tensor:
    """C^T diag(d) C (N, N) from sums t_m = sum_n c_n^2 d_n cos(pi n m / N) (N + 1), without a matrix product.

    By the product of cosines entry (j, k) is (t_|j-k| + t_(j+k+1)) / 2: a Toeplitz and a Hankel matrix, each a
    sliding window over one vector; t is even about m = N.
    """
    width = sums.shape[0] - 1
    inner = sums[1:width].flip(0)
    toeplitz = torch.cat([inner, sums[:width]]).unfold(0, width, 1).flip(0)
    hankel = torch.cat([sums[1:], inner]).unfold(0, width, 1)
    return (toeplitz + hankel) / 2


def tiled(in_channels: int, out_channels: int) -> Tensor:
    """Which input each of the N = O > I channels reads: padded by repetition to a divisor of O, then tiled (RULES)."""
    padded = next(width for width in range(in_channels, out_channels + 1) if out_channels % width == 0)
    return torch.arange(out_channels, device="cpu") % padded % in_channels


class ACDCMap(StructuredMap):
    """A pointwise map whose weight is the product of L layers, multiplied out from its narrow side."""

    table: Tensor
    riffle: Tensor
    edge: Tensor

    def __init__(self, in_channels: int, out_channels: int, layers: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.layers, self.width = layers, max(in_channels, out_channels)
        self.first = nn.Parameter(torch.empty(layers, self.width))
        self.second = nn.Parameter(torch.empty(layers, self.width))
        order = torch.arange(self.width, device="cpu")
        self.register_buffer("table", cosines(self.width).to(self.first.dtype), persistent=False)
        self.register_buffer("riffle", torch.cat([order[::2], order[1::2]]), persistent=False)
        self.register_buffer("edge", self._edge().to(self.first.dtype), persistent=False)
        self.output_scale = self.target_std() * sqrt(min(in_channels, out_channels)) / (1 + START_STD**2) ** layers
        self.reset()

    def _edge(self) -> Tensor:
        """(N, min(I, O)): T, or S transposed."""
        if self.in_channels <= self.out_channels:
            return torch.eye(self.in_channels)[tiled(self.in_channels, self.out_channels)]
        return torch.eye(self.out_channels).repeat(self.in_channels // self.out_channels, 1)

    def weight(self) -> Tensor:
        """S M_L P M_(L-1) P .. M_1 T with M = C^T diag(second) C diag(first) and P the riffle, times a fixed scale."""
        sums = self.second @ self.table
        product = self.edge * self.output_scale
        if self.in_channels <= self.out_channels:
            square = self.in_channels == self.out_channels  # the edge is the unit matrix: one product less
            scaled = sandwich(sums[0]) * self.first[0]
            product = scaled * self.output_scale if square else scaled @ product
            for layer in range(1, self.layers):
                product = sandwich(sums[layer]) @ (self.first[layer, :, None] * product.index_select(0, self.riffle))
            return product
        undo = torch.argsort(self.riffle)
        for layer in reversed(range(self.layers)):  # transposed, from the output on; a sandwich is symmetric
            product = self.first[layer, :, None] * (sandwich(sums[layer]) @ product)
            product = product if layer == 0 else product.index_select(0, undo)
        return product.T

    def start_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Diagonals N(1, q^2) against the fixed output scale sqrt(2 / (1 + q^2)^(2L)) (FACTS), shrunk to `std`."""
        gain = (std / self.target_std()) ** (1 / self.degree())
        for factor in (self.first, self.second):
            factor.normal_(mean=1.0, std=START_STD, generator=generator).mul_(gain)

    def fit_factors(self, dense: Tensor) -> None:
        """Alternating least squares over the 2L diagonals, in each of which the weight is linear."""
        diagonals = torch.stack([self.first, self.second], 1).flatten(0, 1).detach().double().cpu()  # (2L, N)
        found = fit_diagonals(dense.detach().double().cpu(), self._fixed(), diagonals)
        self.first.copy_(found[::2])
        self.second.copy_(found[1::2])

    def _fixed(self) -> list[Tensor]:
        """The 2L + 1 matrices around the diagonals, from the input on: T, C, P C^T, C, .., C, S C^T with the scale."""
        index = torch.arange(self.width, dtype=torch.float64)
        transform = torch.cos(pi / self.width * index[:, None] * (index + 0.5)) * sqrt(2 / self.width)
        transform[0] /= sqrt(2)
        edge = self._edge().double()
        inside = [transform, transform.T[self.riffle.cpu()]] * self.layers
        if self.in_channels <= self.out_channels:
            return [edge, *inside[:-1], transform.T * self.output_scale]
        return [torch.eye(self.width, dtype=torch.float64), *inside[:-1], edge.T @ transform.T * self.output_scale]

    def degree(self) -> int:
        return 2 * self.layers


def fit_diagonals(dense: Tensor, fixed: list[Tensor], diagonals: Tensor) -> Tensor:
    """Diagonals g (M, N) that bring fixed[M] diag(g_M) .. fixed[1] diag(g_1) fixed[0] near `dense`, from a start.

    With left and right the products beside diagonal k, its least squares are ((left^T left) * (right right^T)) g =
    diag(left^T dense right^T).
    """
    diagonals = diagonals.clone()
    for _ in range(SWEEPS):
        lefts = [fixed[-1]]
        for matrix, diagonal in zip(reversed(fixed[1:-1]), reversed(diagonals[1:]), strict=True):
            lefts.append(lefts[-1] * diagonal @ matrix)
        right = fixed[0]
        for k, left in enumerate(reversed(lefts)):
            gram = (left.T @ left) * (right @ right.T)
            gram.diagonal().add_(RIDGE * gram.diagonal().max().clamp_min(1e-30))
            diagonals[k] = torch.linalg.solve(gram, ((left.T @ dense) * right).sum(1))
            right = fixed[k + 1] @ (diagonals[k, :, None] * right)
    return diagonals
