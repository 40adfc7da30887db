"""ACDC: L layers of diagonal, cosine transform, diagonal, inverse transform, with a riffle of the channels in between.

    W = S M_L P M_(L-1) P .. P M_1 T,  M_l = C^T diag(second_l) C diag(first_l)

Source: Moczulski et al. 2016, "ACDC: a structured efficient linear layer".

Letters: I in-channels, O out-channels, N = max(I, O) width, L layers, C the orthonormal DCT-II, P the riffle (a fixed
permutation: even channels first, then odd ones), T (N, I) the tiling of the input, S (O, N) the grouped sum of outputs.
G maps of a stack, `..` leading dimensions.
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

from lowrank.layers.acdc.entries import halves_matrix, toeplitz_and_hankel
from lowrank.layers.acdc.stack import ChainConstants, LayerChain, cached_constants, layer_slots
from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, Method, SeparableMethod
from lowrank.layers.factored import FactoredMap, working_dtype

INIT_STD = 0.1  # of the diagonals about 1: q
SWEEPS = 4  # over all diagonals when fitting a trained weight; each costs about 12 L products of N x N
RIDGE = 1e-9  # relative to the largest normal-equation entry; keeps singular equations solvable
MAX_LAYERS = 256


class ACDC(SeparableMethod):
    """Depthwise K x K and a pointwise map of `layers` layers.

    The map has 2 * N * L parameters. What the study called "ACDC n" has n - 1 layers.
    """

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
        """Count the depthwise part, and L * (4N + 5N log2 N) for each position of the map.

        Positions are those of the input if K > 1, else of the output.
        """
        width = max(shape.in_channels, shape.out_channels)
        area = shape.in_area if shape.kernel_area > 1 else shape.out_area
        per_position = self.layers * (4 * width + 5 * width * log2(width))
        return shape.depthwise_params * shape.out_area + round(per_position * area)

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return ACDCMap(in_channels, out_channels, self.layers, **options)

    def settings_by_size(self, shapes: Iterable[ConvShape]) -> Iterable[Method]:
        return (self.model_copy(update={"layers": layers}) for layers in range(1, self.largest + 1))


def cosine_multiplier(diagonals: Tensor) -> Tensor:
    """Compute C^T diag(d) C without a matrix product, by one real transform of length 2N that gives all h_m.

    See `lowrank.layers.acdc.entries`.

    Args:
        diagonals: d, (L, N).

    Returns:
        (L, N, N).
    """
    width = diagonals.shape[1]
    padded = functional.pad(diagonals, (0, 1))
    halves = torch.fft.irfft(torch.complex(padded, torch.zeros_like(padded)), n=2 * width)
    return toeplitz_and_hankel(torch.cat([halves[:, :width], halves[:, 1 : width + 1]], 1))


@lru_cache(maxsize=32)
def cosine_matrix(width: int) -> Tensor:
    """Return C (N, N) in float64, on the CPU."""
    index = torch.arange(width, dtype=torch.float64, device="cpu")
    matrix = torch.cos(pi / width * index[:, None] * (index + 0.5)) * sqrt(2 / width)
    matrix[0] *= sqrt(0.5)
    return matrix


class Permute(torch.autograd.Function):
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
        return Permute.apply(gradient, inverse, order), None, None


def half_transform(x: Tensor, turn: Tensor) -> Tensor:
    """Compute the cosine transform of rows in half as many complex numbers: k has entry k - i * entry N - k.

    By one real transform of length N (Makhoul 1980, "A fast cosine transform in one and two dimensions").

    Args:
        x: (.., N), in the order of `makhoul_order`.
        turn: (N // 2 + 1,), exp(-i pi k / (2N)).

    Returns:
        (.., N // 2 + 1), not normalised.
    """
    return torch.fft.rfft(x) * turn


def scale_and_invert(spectrum: Tensor, pairs: Tensor, turn: Tensor, width: int) -> Tensor:
    """Scale entries k and N - k of a `half_transform` by pairs[k], and invert it.

    Args:
        spectrum: (.., N // 2 + 1), complex.
        pairs: (N // 2 + 1, 2).
        turn: as `half_transform` took it.
        width: N.

    Returns:
        (.., N), in the order of `makhoul_order`.
    """
    scaled = torch.view_as_complex(torch.view_as_real(spectrum) * pairs)
    return torch.fft.irfft(scaled * turn.conj(), n=width)


class CosineMultiplier(torch.autograd.Function):
    """x C^T diag(d) C for rows x in Makhoul's order, by fast transforms; `pairs` (N // 2 + 1, 2) holds d_k, d_(N-k).

    The map is symmetric: its gradient by x is the same map. Only x is stored for the backward pass.
    """

    @staticmethod
    def forward(x: Tensor, pairs: Tensor, turn: Tensor) -> Tensor:
        return scale_and_invert(half_transform(x, turn), pairs, turn, x.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, pairs, turn = ctx.saved_tensors
        width = x.shape[-1]
        of_gradient, of_x = half_transform(gradient, turn), half_transform(x, turn)
        products = (torch.view_as_real(of_gradient) * torch.view_as_real(of_x)).sum(0)
        weights = torch.full_like(products, 2 / width)
        weights[0] = 1 / width
        if width % 2 == 0:
            weights[-1] = 1 / width  # entry N / 2 is there twice
        return scale_and_invert(of_gradient, pairs, turn, width), products * weights, None


def apply_function(function: type[torch.autograd.Function], *inputs: Tensor) -> Tensor:
    """Apply one of the functions above; while compiling or exporting its plain form, of which the compiler derives."""
    return function.forward(*inputs) if torch.compiler.is_compiling() else function.apply(*inputs)


def makhoul_order(width: int) -> Tensor:
    """Return even positions ascending, then odd ones descending: (N,)."""
    order = torch.arange(width, device="cpu")
    return torch.cat([order[::2], order[1::2].flip(0)])


def tiled_inputs(in_channels: int, out_channels: int) -> Tensor:
    """Return which input each of the N = O > I channels reads: (N,).

    The input is padded by repeated channels up to the next width that divides O, then tiled.
    """
    padded = next(width for width in range(in_channels, out_channels + 1) if out_channels % width == 0)
    return torch.arange(out_channels, device="cpu") % padded % in_channels


class ACDCMap(FactoredMap):
    """A pointwise map whose weight is the product of L layers.

    On a CPU rows of the narrow side pass through all layers by fast transforms, N log N for each row and layer. On a
    GPU, and where N is small, calls cost more than products: the layers' matrices are computed together and multiplied
    pair by pair.
    """

    cast_factors_first = False  # transforms have no half precision

    min_transform_width: ClassVar[int] = 128  # from which on transforms are faster on a CPU

    riffle: Tensor
    unriffle: Tensor
    order: Tensor
    inverse_order: Tensor
    edge: Tensor
    slots: Tensor

    def __init__(self, in_channels: int, out_channels: int, layers: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.layers, self.width = layers, max(in_channels, out_channels)
        self.first = nn.Parameter(torch.empty(layers, self.width))
        self.second = nn.Parameter(torch.empty(layers, self.width))
        channels, order = torch.arange(self.width, device="cpu"), makhoul_order(self.width)
        riffle = torch.cat([channels[::2], channels[1::2]])
        for name, values in {
            "riffle": riffle, "unriffle": torch.argsort(riffle), "order": order, "inverse_order": torch.argsort(order),
            "edge": self._edge().to(self.first.dtype), "slots": torch.tensor(layer_slots(layers), device="cpu"),
        }.items():  # fmt: skip
            self.register_buffer(name, values, persistent=False)
        self.output_scale = self.target_std() * sqrt(min(in_channels, out_channels)) / (1 + INIT_STD**2) ** layers
        self.reset()

    def _edge(self) -> Tensor:
        """Return T, or S transposed: (N, min(I, O))."""
        if self.in_channels <= self.out_channels:
            return torch.eye(self.in_channels)[tiled_inputs(self.in_channels, self.out_channels)]
        return torch.eye(self.out_channels).repeat(self.in_channels // self.out_channels, 1)

    def assemble(self, factors: Sequence[Tensor]) -> Tensor:
        """Compute W of the formula at the head of this file, times a fixed scale."""
        first, second = factors
        on_gpu = first.is_cuda and not torch.compiler.is_compiling()
        if first.dim() == 3 and not on_gpu:  # only a GPU gains by a stack
            return torch.stack([self.assemble(pair) for pair in zip(first, second, strict=True)])
        dtype, edge = first.dtype, self.edge
        if dtype in (torch.float16, torch.bfloat16):  # transforms have no half precision
            first, second, edge = first.float(), second.float(), edge.float()
        if on_gpu:
            return self._multiply_on_gpu(first, second, working_dtype(factors[0]))
        edge = edge * self.output_scale
        multiply = first.is_cuda or self.width < self.min_transform_width
        weight = self._multiply_layers(first, second, edge) if multiply else self._transform_edge(first, second, edge)
        return weight.to(dtype)

    def _multiply_on_gpu(self, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the weight for diagonals (G, L, N) or (L, N) in few calls; the matrices are rounded to `dtype`."""
        key = (dtype, first.dtype, first.device)
        constants = cached_constants(self, key, lambda: self._constants_on_gpu(first, dtype))
        if first.dim() == 3:
            return LayerChain.apply(first, second, constants, dtype)
        return LayerChain.apply(first[None], second[None], constants, dtype).squeeze(0)

    def _constants_on_gpu(self, like: Tensor, dtype: torch.dtype) -> ChainConstants:
        gains = torch.ones(self.layers, dtype=like.dtype, device=like.device)
        gains[0] = self.output_scale
        edge = None if self.in_channels == self.out_channels and self.layers > 1 else self.edge.to(dtype)
        widens = self.in_channels <= self.out_channels
        matrix = halves_matrix(self.width, like)
        return ChainConstants(matrix, matrix.mT.contiguous(), gains, self.slots, edge, widens)

    def _multiply_layers(self, first: Tensor, second: Tensor, edge: Tensor) -> Tensor:
        """Multiply all layers, transposed: B_l = diag(first) C^T diag(second) C P^T, in pairs."""
        layers = first[:, :, None] * cosine_multiplier(second)  # (L, N, N)
        layers = torch.cat([apply_function(Permute, layers[:-1], self.riffle, self.unriffle), layers[-1:]])
        while len(layers) > 1:
            even = len(layers) // 2 * 2
            layers = torch.cat([torch.bmm(layers[:even:2], layers[1:even:2]), layers[even:]])
        return layers[0].T @ edge if self.in_channels <= self.out_channels else edge.T @ layers[0].T

    def _transform_edge(self, first: Tensor, second: Tensor, edge: Tensor) -> Tensor:
        """Pass the columns of the edge, as rows in Makhoul's order, through one layer after the other."""
        first = first[:, self.order]
        ends = torch.arange(self.width // 2 + 1, device=first.device)
        angles = ends.to(first.dtype) * (pi / (2 * self.width))
        turn = torch.polar(torch.ones_like(angles), -angles)
        pairs = functional.pad(second, (0, 1))[:, torch.stack([ends, self.width - ends], 1)]
        riffle, unriffle = (self.inverse_order[channels[self.order]] for channels in (self.riffle, self.unriffle))
        rows = edge.T[:, self.order]
        if self.in_channels <= self.out_channels:
            for layer in range(self.layers):
                rows = rows if layer == 0 else apply_function(Permute, rows, riffle, unriffle)
                rows = apply_function(CosineMultiplier, rows * first[layer], pairs[layer], turn)
            return apply_function(Permute, rows, self.inverse_order, self.order).T
        for layer in reversed(range(self.layers)):  # from the output on: all but the riffle is symmetric
            rows = apply_function(CosineMultiplier, rows, pairs[layer], turn) * first[layer]
            rows = rows if layer == 0 else apply_function(Permute, rows, unriffle, riffle)
        return apply_function(Permute, rows, self.inverse_order, self.order)

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw diagonals from N(1, q^2), then scale them from He's std to `std`.

        The weight has He's std by its fixed output scale, sqrt(2 / (1 + q^2)^(2L)).
        """
        gain = (std / self.target_std()) ** (1 / self.degree())
        for factor in (self.first, self.second):
            factor.normal_(mean=1.0, std=INIT_STD, generator=generator).mul_(gain)

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by alternating least squares over the 2L diagonals, in each of which the weight is linear."""
        diagonals = torch.stack([self.first, self.second], 1).flatten(0, 1).detach().double().cpu()  # (2L, N)
        fitted = fit_diagonals(dense.detach().double().cpu(), self._fixed_matrices(), diagonals)
        self.first.copy_(fitted[::2])
        self.second.copy_(fitted[1::2])

    def _fixed_matrices(self) -> list[Tensor]:
        """Return the 2L + 1 matrices around the diagonals, input first: T, C, P C^T, C, .., C, S C^T with the scale."""
        transform = cosine_matrix(self.width)
        edge = self._edge().double()
        inside = [transform, transform.T[self.riffle.cpu()]] * self.layers
        if self.in_channels <= self.out_channels:
            return [edge, *inside[:-1], transform.T * self.output_scale]
        return [torch.eye(self.width, dtype=torch.float64), *inside[:-1], edge.T @ transform.T * self.output_scale]

    def degree(self) -> int:
        return 2 * self.layers


def fit_diagonals(dense: Tensor, matrices: list[Tensor], diagonals: Tensor) -> Tensor:
    """Fit M diagonals g, so that F_M diag(g_M) .. F_1 diag(g_1) F_0 is near `dense`, by alternating least squares.

    With before and after the products of all beside diagonal k, its normal equations are
    ((after^T after) * (before before^T)) g = diag(after^T dense before^T).

    Args:
        dense: (O, I), float64.
        matrices: the fixed F_0 .. F_M.
        diagonals: where to start, (M, N).

    Returns:
        (M, N).
    """
    diagonals = diagonals.clone()
    for _ in range(SWEEPS):
        products_after = [matrices[-1]]
        for matrix, diagonal in zip(reversed(matrices[1:-1]), reversed(diagonals[1:]), strict=True):
            products_after.append(products_after[-1] * diagonal @ matrix)
        before = matrices[0]
        for k, after in enumerate(reversed(products_after)):
            gram = (after.T @ after) * (before @ before.T)
            gram.diagonal().add_(RIDGE * gram.diagonal().max().clamp_min(1e-30))
            diagonals[k] = torch.linalg.solve(gram, ((after.T @ dense) * before).sum(1))
            before = matrices[k + 1] @ (diagonals[k, :, None] * before)
    return diagonals
