"""The contract of a method: settings that count parameters, count mult-adds and build a layer.

Letters: I in-channels, O out-channels, K kernel size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import nn

from lowrank.layers.base_layer import SeparableConv2d, StructuredMap, init_normal
from lowrank.layers.functional import Pair


class ConvShape(NamedTuple):
    """What counting and building need to know of one convolution (or linear map: kernel 1 x 1, areas 1)."""

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | str = (0, 0)
    dilation: Pair = (1, 1)
    bias: bool = False
    in_area: int = 1
    out_area: int = 1

    @property
    def kernel_area(self) -> int:
        """K * K (height times width of the kernel)."""
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise_params(self) -> int:
        """Parameters of the depthwise part: K*K*I, none for a pointwise convolution (RULES)."""
        return self.kernel_area * self.in_channels if self.kernel_area > 1 else 0

    @property
    def bias_params(self) -> int:
        """O when the convolution has a bias, which every substitute keeps."""
        return self.out_channels if self.bias else 0


class Method(BaseModel, ABC):
    """Typed settings of one structured substitution; answers for a ConvShape without making a tensor.

    A method whose size is set by one continuous number names it in `scale`; counts must not fall when that number
    grows. A method whose size is set by an integer (layers, groups) lists its distinct settings in `settings_by_size`,
    in any order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scale: ClassVar[str | None] = None

    name: str

    @abstractmethod
    def params(self, shape: ConvShape) -> int:
        """Exact number of parameters, bias included."""

    @abstractmethod
    def mult_adds(self, shape: ConvShape) -> int:
        """Mult-adds for one image, as RULES charges them."""

    @abstractmethod
    def build(self, shape: ConvShape) -> nn.Module:
        """The module that stands in for the convolution, started from scratch."""

    def infeasible(self, shape: ConvShape) -> str | None:
        """Why this setting cannot stand for `shape`; None when it can."""
        return None

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        """What is really built: settings with equal signatures give the same network."""
        return (self.name, *(value for key, value in sorted(self.model_dump().items()) if key != "name"))

    def with_scale(self, value: float) -> Method:
        """The same settings at another scale."""
        if self.scale is None:
            raise TypeError(f"{self.name} has no continuous scale")
        return self.model_copy(update={self.scale: value})

    def settings_by_size(self, shapes: Iterable[ConvShape]) -> Iterable[Method]:
        """Every setting that differs from this one in size only, for a method without `scale`: what a budget tries."""
        return (self,)


class SeparableMethod(Method):
    """Depthwise K x K (absent for K = 1) and a pointwise map I -> O; a subclass says what the pointwise map is."""

    @abstractmethod
    def map_params(self, in_channels: int, out_channels: int) -> int:
        """Parameters of the pointwise map, without bias."""

    @abstractmethod
    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        """The pointwise map as a module; `options` are `stride`, `padding` and `bias`."""

    def map_mult_adds(self, in_channels: int, out_channels: int) -> int:
        """Mult-adds of the pointwise map at one position; the study charges a rebuilt map as the dense one."""
        return in_channels * out_channels

    def params(self, shape: ConvShape) -> int:
        return shape.depthwise_params + self.map_params(shape.in_channels, shape.out_channels) + shape.bias_params

    def mult_adds(self, shape: ConvShape) -> int:
        per_position = shape.depthwise_params + self.map_mult_adds(shape.in_channels, shape.out_channels)
        return per_position * shape.out_area

    def build(self, shape: ConvShape) -> nn.Module:
        channels = (shape.in_channels, shape.out_channels)
        if shape.kernel_area == 1:
            return self.make_map(*channels, stride=shape.stride, padding=shape.padding, bias=shape.bias)
        return SeparableConv2d(make_depthwise(shape), self.make_map(*channels, bias=shape.bias))


def make_depthwise(shape: ConvShape) -> nn.Conv2d:
    """The depthwise part: carries stride, padding and dilation, has no bias, variance 1/K^2 (FACTS)."""
    conv = nn.Conv2d(
        shape.in_channels, shape.in_channels, shape.kernel, stride=shape.stride, padding=shape.padding,
        dilation=shape.dilation, groups=shape.in_channels, bias=False,
    )  # fmt: skip
    init_normal(conv.weight, 1 / math.sqrt(shape.kernel_area))
    return conv
