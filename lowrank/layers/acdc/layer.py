"""ACDC: L layers of diagonal, cosine transform, diagonal, inverse transform (Moczulski et al. 2016, "ACDC: a structured
efficient linear layer"), with a riffle of the channels between layers.

Letters: I in-channels, O out-channels, N = max(I, O) width, L layers, C the orthonormal DCT-II, T the tiling of the
input (N, I), S the grouped sum of outputs (O, N).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import log2, pi, sqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.acdc.entries import toeplitz_and_hankel, waves
from lowrank.layers.acdc.stack import Chain, Fixed, fixed, slots_of
from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, Method, SeparableMethod
from lowrank.layers.factored import FactoredMap, working_dtype

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


def sandwich(diagonals: Tensor) -> Tensor:
    """C^T diag(d) C (L, N, N) of diagonals d (L, N), without a matrix product (see `acdc_entries`).

    By one real transform of length 2N, which gives all h_m.
    """
    width = diagonals.shape[1]
    padded = functional.pad(diagonals, (0, 1))
    halves = torch.fft.irfft(torch.complex(padded, torch.zeros_like(padded)), n=2 * width)
    return toeplitz_and_hankel(torch.cat([halves[:, :width], halves[:, 1 : width + 1]], 1))


@lru_cache(maxsize=32)
def cosines(width: int) -> Tensor:
    """C (N, N) in float64, on the CPU."""
    index = torch.arange(width, dtype=torch.float64, device="cpu")
    matrix = torch.cos(pi / width * index[:, None] * (index + 0.5)) * sqrt(2 / width)
    matrix[0] *= sqrt(0.5)
    return matrix


class Permuted(torch.autograd.Function):
    """x[.., order], whose gradient is a gather by `inverse` rather than a scatter."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        order, inverse = ctx.saved_tensors
        return Permuted.apply(gradient, inverse, order), None, None


def half_transform(x: Tensor, turn: Tensor) -> Tensor:
    """The cosine transform of rows x (.., N) in half as many complex numbers: k has entry k - i * entry N - k.

    By one real transform of length N (Makhoul 1980, "A fast cosine transform in one and two dimensions"); x comes in
    the order that `makhoul` gives, and is not normalised.
    """
    return torch.fft.rfft(x) * turn


def scaled_back(spectrum: Tensor, pairs: Tensor, turn: Tensor, width: int) -> Tensor:
    """Undoes `half_transform` after scaling entries k and N - k by pairs[k]."""
    scaled = torch.view_as_complex(torch.view_as_real(spectrum) * pairs)
    return torch.fft.irfft(scaled * turn.conj(), n=width)


class Sandwiched(torch.autograd.Function):
    """x C^T diag(d) C for rows x in Makhoul's order, by fast transforms; `pairs` (N // 2 + 1, 2) holds d_k, d_(N-k).

    The map is symmetric: its gradient by x is the same map. Only x is kept for it.
    """

    @staticmethod
    def forward(x: Tensor, pairs: Tensor, turn: Tensor) -> Tensor:
        return scaled_back(half_transform(x, turn), pairs, turn, x.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, pairs, turn = ctx.saved_tensors
        width = x.shape[-1]
        there, here = half_transform(gradient, turn), half_transform(x, turn)
        products = (torch.view_as_real(there) * torch.view_as_real(here)).sum(0)
        halved = torch.full_like(products, 2 / width)
        halved[0] = 1 / width
        if width % 2 == 0:
            halved[-1] = 1 / width  # entry N / 2 is there twice
        return scaled_back(there, pairs, turn, width), products * halved, None


def applied(function: type[torch.autograd.Function], *inputs: Tensor) -> Tensor:
    """One of the functions above; its plain form while compiling or exporting, which derive the gradient themselves."""
    return function.forward(*inputs) if torch.compiler.is_compiling() else function.apply(*inputs)


def makhoul(width: int) -> Tensor:
    """Even positions ascending, then odd ones descending."""
    order = torch.arange(width, device="cpu")
    return torch.cat([order[::2], order[1::2].flip(0)])


def tiled(in_channels: int, out_channels: int) -> Tensor:
    """Which input each of the N = O > I channels reads: padded by repetition to a divisor of O, then tiled (RULES)."""
    padded = next(width for width in range(in_channels, out_channels + 1) if out_channels % width == 0)
    return torch.arange(out_channels, device="cpu") % padded % in_channels


class ACDCMap(FactoredMap):
    """A pointwise map whose weight is the product of L layers.

    On a CPU rows of the narrow side pass through all layers by fast transforms, N log N each. On a GPU, and where N is
    small, calls cost more than products: the layers' matrices are formed together and multiplied pair by pair.
    """

    cast_factors_first = False  # transforms have no half precision

    fast_from: ClassVar[int] = 128  # the width at which transforms become faster on a CPU

    riffle: Tensor
    unriffle: Tensor
    order: Tensor
    disorder: Tensor
    edge: Tensor
    slots: Tensor

    def __init__(self, in_channels: int, out_channels: int, layers: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.layers, self.width = layers, max(in_channels, out_channels)
        self.first = nn.Parameter(torch.empty(layers, self.width))
        self.second = nn.Parameter(torch.empty(layers, self.width))
        channels, order = torch.arange(self.width, device="cpu"), makhoul(self.width)
        riffle = torch.cat([channels[::2], channels[1::2]])
        for name, values in {
            "riffle": riffle, "unriffle": torch.argsort(riffle), "order": order, "disorder": torch.argsort(order),
            "edge": self._edge().to(self.first.dtype), "slots": torch.tensor(slots_of(layers), device="cpu"),
        }.items():  # fmt: skip
            self.register_buffer(name, values, persistent=False)
        self.output_scale = self.target_std() * sqrt(min(in_channels, out_channels)) / (1 + START_STD**2) ** layers
        self.reset()

    def _edge(self) -> Tensor:
        """(N, min(I, O)): T, or S transposed."""
        if self.in_channels <= self.out_channels:
            return torch.eye(self.in_channels)[tiled(self.in_channels, self.out_channels)]
        return torch.eye(self.out_channels).repeat(self.in_channels // self.out_channels, 1)

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        """S M_L P M_(L-1) P .. M_1 T with M = C^T diag(second) C diag(first) and P the riffle, times a fixed scale."""
        first, second = factors
        on_gpu = first.is_cuda and not torch.compiler.is_compiling()
        if first.dim() == 3 and not on_gpu:  # only a GPU gains by a stack
            return torch.stack([self.assembled(pair) for pair in zip(first, second, strict=True)])
        dtype, edge = first.dtype, self.edge
        if dtype in (torch.float16, torch.bfloat16):  # transforms have no half precision
            first, second, edge = first.float(), second.float(), edge.float()
        if on_gpu:
            return self._stacked(first, second, working_dtype(factors[0]))
        edge = edge * self.output_scale
        multiply = first.is_cuda or self.width < self.fast_from
        found = self._multiplied(first, second, edge) if multiply else self._transformed(first, second, edge)
        return found.to(dtype)

    def _stacked(self, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        """As `_multiplied`, for diagonals (G, L, N) or (L, N), in few calls; rounded to `dtype` once formed."""
        kept = fixed(self, (dtype, first.dtype, first.device), lambda: self._fixed_on_gpu(first, dtype))
        if first.dim() == 3:
            return Chain.apply(first, second, kept, dtype)
        return Chain.apply(first[None], second[None], kept, dtype).squeeze(0)

    def _fixed_on_gpu(self, like: Tensor, dtype: torch.dtype) -> Fixed:
        gains = torch.ones(self.layers, dtype=like.dtype, device=like.device)
        gains[0] = self.output_scale
        edge = None if self.in_channels == self.out_channels and self.layers > 1 else self.edge.to(dtype)
        widens = self.in_channels <= self.out_channels
        found = waves(self.width, like)
        return Fixed(found, found.mT.contiguous(), gains, self.slots, edge, widens)

    def _multiplied(self, first: Tensor, second: Tensor, edge: Tensor) -> Tensor:
        """All layers at once, transposed: B_l = diag(first) C^T diag(second) C P^T, and their product in pairs."""
        layers = first[:, :, None] * sandwich(second)  # (L, N, N)
        layers = torch.cat([applied(Permuted, layers[:-1], self.riffle, self.unriffle), layers[-1:]])
        while len(layers) > 1:
            even = len(layers) // 2 * 2
            layers = torch.cat([torch.bmm(layers[:even:2], layers[1:even:2]), layers[even:]])
        return layers[0].T @ edge if self.in_channels <= self.out_channels else edge.T @ layers[0].T

    def _transformed(self, first: Tensor, second: Tensor, edge: Tensor) -> Tensor:
        """The edge's columns, as rows in Makhoul's order, through one layer after the other."""
        first = first[:, self.order]
        ends = torch.arange(self.width // 2 + 1, device=first.device)
        angles = ends.to(first.dtype) * (pi / (2 * self.width))
        turn = torch.polar(torch.ones_like(angles), -angles)
        pairs = functional.pad(second, (0, 1))[:, torch.stack([ends, self.width - ends], 1)]
        riffle, unriffle = (self.disorder[way[self.order]] for way in (self.riffle, self.unriffle))
        rows = edge.T[:, self.order]
        if self.in_channels <= self.out_channels:
            for layer in range(self.layers):
                rows = rows if layer == 0 else applied(Permuted, rows, riffle, unriffle)
                rows = applied(Sandwiched, rows * first[layer], pairs[layer], turn)
            return applied(Permuted, rows, self.disorder, self.order).T
        for layer in reversed(range(self.layers)):  # from the output on; every layer but the riffle is symmetric
            rows = applied(Sandwiched, rows, pairs[layer], turn) * first[layer]
            rows = rows if layer == 0 else applied(Permuted, rows, unriffle, riffle)
        return applied(Permuted, rows, self.disorder, self.order)

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
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
        transform = cosines(self.width)
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
