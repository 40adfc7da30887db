"""The two dense forms: the convolution unchanged, and depthwise + dense pointwise ("separable").

Source of the second: Chollet 2017, "Xception: deep learning with depthwise separable convolutions".
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.layers.base_layer import StructuredMap, init_normal
from lowrank.layers.base_method import ConvShape, Method, SeparableMethod


class Dense(Method):
    """The convolution unchanged: K*K*I*O parameters."""

    name: Literal["dense"] = "dense"

    def params(self, shape: ConvShape) -> int:
        return shape.kernel_area * shape.in_channels // shape.groups * shape.out_channels + shape.bias_params

    def mult_adds(self, shape: ConvShape) -> int:
        return shape.kernel_area * shape.in_channels // shape.groups * shape.out_channels * shape.out_area

    def build(self, shape: ConvShape) -> nn.Module:
        conv = nn.Conv2d(
            shape.in_channels, shape.out_channels, shape.kernel, stride=shape.stride, padding=shape.padding,
            dilation=shape.dilation, groups=shape.groups, bias=shape.bias,
        )  # fmt: skip
        init_normal(conv.weight, math.sqrt(2 / (shape.kernel_area * shape.in_channels // shape.groups)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv


class Separable(SeparableMethod):
    """Depthwise K x K and a dense pointwise map of I*O parameters."""

    name: Literal["separable"] = "separable"

    def map_params(self, in_channels: int, out_channels: int) -> int:
        return in_channels * out_channels

    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        return DenseMap(in_channels, out_channels, **options)


class DenseMap(StructuredMap):
    """A pointwise map with a plain O x I weight."""

    def __init__(self, in_channels: int, out_channels: int, **options: Any):
        super().__init__(in_channels, out_channels, **options)
        self.matrix = nn.Parameter(torch.empty(out_channels, in_channels))
        self.reset()

    def compute_weight(self) -> Tensor:
        return self.matrix

    def init_factors(self, std: float, generator: torch.Generator | None) -> None:
        self.matrix.normal_(std=std, generator=generator)

    def fit_factors(self, dense: Tensor) -> None:
        self.matrix.copy_(dense)

    def factors(self) -> list[nn.Parameter]:
        """Return none: a plain weight is not a factor, so scaled weight decay leaves it alone."""
        return []

    def rescaled_factors(self) -> list[nn.Parameter]:
        return [self.matrix]
