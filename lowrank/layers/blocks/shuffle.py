"""Linear shuffle: grouped 1 x 1, channel shuffle, depthwise K x K, grouped 1 x 1, with nothing nonlinear in between.

    W[o, i, :] = sum_m up[o, m] depthwise[m, :] down[m, i]

where up and down are block-diagonal, and the rows of down are shuffled.

Source: Zhang et al. 2018, "ShuffleNet: an extremely efficient convolutional neural network for mobile devices", whose
unit the study of 2018-19 made linear.

Letters: B batch, I in-channels, M = floor(O / 4) middle channels, O out-channels, H x W positions, G groups, K kernel
size.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import gcd, sqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import ConvShape, Method

MAX_GROUPS = 4096
SWEEPS = 30  # of alternating least squares when fitting a trained weight
RIDGE = 1e-9  # relative to the largest normal-equation entry; keeps singular equations solvable


@cache
def divisors(n: int) -> tuple[int, ...]:
    """Return all divisors of n, ascending."""
    return tuple(divisor for divisor in range(1, n + 1) if n % divisor == 0)


class Shuffle(Method):
    """Replaces the whole K x K convolution, in G groups.

    G is the largest number <= `groups` that divides I, O and M. The layer has I*M/G + K*K*M + M*O/G parameters.
    """

    name: Literal["shuffle"] = "shuffle"
    groups: int = Field(default=4, ge=1, le=MAX_GROUPS)

    def structure(self, shape: ConvShape) -> tuple[int, int]:
        """Return M and G for a convolution of `shape`."""
        middle = shape.out_channels // 4
        common = gcd(shape.in_channels, shape.out_channels, middle)
        return middle, max(divisor for divisor in divisors(common) if divisor <= self.groups)

    def infeasible(self, shape: ConvShape) -> str | None:
        if shape.out_channels >= 4:
            return None
        return f"a quarter of the output channels must be at least 1, but there are {shape.out_channels}"

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        return (self.name, *self.structure(shape))

    def params(self, shape: ConvShape) -> int:
        middle, groups = self.structure(shape)
        grouped = middle * (shape.in_channels + shape.out_channels) // groups
        return grouped + shape.kernel_area * middle + shape.bias_params

    def mult_adds(self, shape: ConvShape) -> int:
        middle, groups = self.structure(shape)
        after = shape.kernel_area * middle + middle * shape.out_channels // groups
        return shape.in_channels * middle // groups * shape.in_area + after * shape.out_area

    def build(self, shape: ConvShape) -> nn.Module:
        return ShuffleMap(
            shape.in_channels, shape.out_channels, *self.structure(shape), kernel=shape.kernel, stride=shape.stride,
            padding=shape.padding, dilation=shape.dilation, bias=shape.bias,
        )  # fmt: skip

    def settings_by_size(self, shapes: Iterable[ConvShape]) -> Iterable[Method]:
        """Return the settings at which a larger `groups` changes some layer: divisors of the shapes' channels."""
        groups = {1}
        for shape in shapes:
            groups.update(divisors(gcd(shape.in_channels, shape.out_channels, shape.out_channels // 4)))
        return (self.model_copy(update={"groups": count}) for count in sorted(groups) if count <= MAX_GROUPS)


def block_diagonal(blocks: Tensor) -> Tensor:
    """Lay blocks (G, X, Y) out as a matrix (G * X, G * Y), in one call however many there are."""
    return torch.diag_embed(blocks.movedim(0, -1), dim1=0, dim2=2).flatten(2).flatten(0, 1)


class ShuffleMap(StructuredMap):
    """A K x K convolution made of two grouped pointwise maps around a depthwise one."""

    def __init__(self, in_channels: int, out_channels: int, middle: int, parts: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.middle, self.parts = middle, parts
        self.down = nn.Parameter(torch.empty(middle, in_channels // parts))
        self.depthwise = nn.Parameter(torch.empty(middle, 1, *self.kernel))
        self.up = nn.Parameter(torch.empty(out_channels, middle // parts))
        self.reset()

    def shuffle_channels(self, x: Tensor) -> Tensor:
        """Reorder the middle channels (dimension 1) so that each group of the second map reads every group."""
        return x.unflatten(1, (self.parts, -1)).transpose(1, 2).flatten(1, 2)

    def full_matrices(self) -> tuple[Tensor, Tensor]:
        """Return both grouped maps as full matrices (M, I) and (O, M), the channels of the first shuffled."""
        down, up = (block_diagonal(factor.unflatten(0, (self.parts, -1))) for factor in (self.down, self.up))
        return self.shuffle_channels(down[None])[0], up

    def compute_weight(self) -> Tensor:
        down, up = self.full_matrices()
        after = self.depthwise.flatten(1)[:, None] * down[:, :, None]  # (M, I, K*K)
        return (up @ after.flatten(1)).reshape(self.weight_shape)

    def squared_norm(self) -> Tensor:
        """Sum the product of three Gram matrices: W is a CP sum, over middle channels, of three vectors' products."""
        (down, up), depthwise = self.full_matrices(), self.depthwise.flatten(1)
        return ((down @ down.T) * (up.T @ up) * (depthwise @ depthwise.T)).sum()

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        """Draw the depthwise part of std 1 / K, and up and down of std sqrt(s * K * G / sqrt(M)).

        An entry is a sum of M / G^2 products in the mean.
        """
        size = sqrt(self.depthwise[0].numel())
        self.depthwise.normal_(std=1 / size, generator=generator)
        for factor in (self.down, self.up):
            factor.normal_(std=sqrt(std * size * self.parts / sqrt(self.middle)), generator=generator)

    def rescaled_factors(self) -> list[nn.Parameter]:
        return [self.down, self.up]

    def degree(self) -> int:
        return 2

    def fit_factors(self, dense: Tensor) -> None:
        """Fit by alternating least squares over the three factors, from a seeded draw."""
        self.init_factors(self.target_std(), torch.Generator(self.down.device).manual_seed(0))
        target = dense.detach().double().cpu().flatten(2)  # (O, I, K*K)
        down, up = (factor.detach().double().cpu() for factor in self.full_matrices())
        masks = down != 0, up != 0
        depthwise = self.depthwise.detach().double().cpu().flatten(1)
        for _ in range(SWEEPS):
            down = _solve_masked_rows(target.transpose(0, 1), up, depthwise, masks[0].T).T
            up = _solve_masked_rows(target, down.T, depthwise, masks[1])
            gram = _add_ridge((up.T @ up) * (down @ down.T))
            depthwise = torch.linalg.solve(gram, torch.einsum("om,oik,mi->mk", up, target, down))
        self._copy(down, depthwise, up)

    def _copy(self, down: Tensor, depthwise: Tensor, up: Tensor) -> None:
        """Copy the blocks of full matrices (M, I) and (O, M) into the parameters; kernels get norm 1."""
        size = depthwise.norm(dim=1, keepdim=True).clamp_min(1e-30)
        self.depthwise.copy_((depthwise / size).view(self.depthwise.shape))
        unshuffled = torch.argsort(self.shuffle_channels(torch.arange(self.middle)[None])[0])
        blocks = (down * size)[unshuffled].unflatten(1, (self.parts, -1)).unflatten(0, (self.parts, -1))
        self.down.copy_(torch.cat([blocks[part, :, part] for part in range(self.parts)]))
        blocks = up.unflatten(1, (self.parts, -1)).unflatten(0, (self.parts, -1))
        self.up.copy_(torch.cat([blocks[part, :, part] for part in range(self.parts)]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W'), by three convolutions; by two if the depthwise part is 1 x 1.

        A GPU has no fast kernels for grouped convolutions: there both grouped maps become full matrices.
        """
        if x.is_cuda and self.parts > 1 and not torch.compiler.is_exporting():
            down, up, parts = *self.full_matrices(), 1
        else:
            down, up, parts = self.down, self.up, self.parts
        if self.kernel == (1, 1):
            up = (up.unflatten(0, (parts, -1)) * self.depthwise.view(parts, 1, -1)).flatten(0, 1)
            middle = functional.conv2d(x, down[:, :, None, None], None, self.stride, self.padding, groups=parts)
            middle = middle if parts == 1 else self.shuffle_channels(middle)
        else:
            middle = functional.conv2d(x, down[:, :, None, None], groups=parts)
            middle = middle if parts == 1 else self.shuffle_channels(middle)
            middle = functional.conv2d(
                middle, self.depthwise, None, self.stride, self.padding, self.dilation, groups=self.middle
            )
        return functional.conv2d(middle, up[:, :, None, None], self.bias, groups=parts)


def _add_ridge(gram: Tensor) -> Tensor:
    gram.diagonal().add_(RIDGE * gram.diagonal().max().clamp_min(1e-30))
    return gram


def _solve_masked_rows(target: Tensor, other: Tensor, depthwise: Tensor, mask: Tensor) -> Tensor:
    """Find rows a (X, M), zero outside `mask`, that bring sum_m a_xm other_ym depthwise_mk near target (X, Y, K*K).

    Rows with equal masks (those of one group) are solved together.
    """
    gram = (other.T @ other) * (depthwise @ depthwise.T)
    moments = torch.einsum("xyk,ym,mk->xm", target, other, depthwise)
    rows = torch.zeros_like(moments)
    for pattern in torch.unique(mask, dim=0):
        members = (mask == pattern).all(1)
        chosen = pattern.nonzero()[:, 0]
        solved = torch.linalg.solve(_add_ridge(gram[chosen][:, chosen]), moments[members][:, chosen].T).T
        rows[members.nonzero(), chosen] = solved
    return rows
