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
    """The shape of one convolution, or of a linear map (kernel 1 x 1, areas 1).

    All that counting and building need. An area is height times width of the image, in positions.
    """

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | str = (0, 0)
    dilation: Pair = (1, 1)
    bias: bool = False
    in_area: int = 1
    out_area: int = 1
    groups: int = 1
    mixed_area: int = 0

    @property
    def identity(self) -> tuple[Any, ...]:
        """What the id of a trial says of this shape; recorded ids depend on it.

        A field that ids did not know when they were first recorded is added only where it is not at its default.
        `mixed_area` follows from the image, which an id names by the data's fingerprint.
        """
        fields = (
            self.in_channels, self.out_channels, self.kernel, self.stride, self.padding, self.dilation, self.bias,
            self.in_area, self.out_area,
        )  # fmt: skip
        return fields if self.groups == 1 else (*fields, ("groups", self.groups))

    @property
    def vertical_area(self) -> int:
        """Output height times input width: the positions of a K x 1 stage that a 1 x K stage follows.

        `mixed_area` holds it where the image is not square; for square images it is sqrt(in_area * out_area).
        """
        return self.mixed_area or math.isqrt(self.in_area * self.out_area)

    @property
    def undilated_out_area(self) -> int:
        """The output area that the convolution would have with a dilation of 1.

        The sides are known of square images; for others, and where the padding is given in words, it is `out_area`.
        """
        side = math.isqrt(self.in_area)
        if self.dilation == (1, 1) or isinstance(self.padding, str) or side * side != self.in_area:
            return self.out_area
        height, width = (
            (side + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1 for axis in (0, 1)
        )
        return height * width

    @property
    def kernel_area(self) -> int:
        """K * K (height times width of the kernel)."""
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise_params(self) -> int:
        """Parameters of the depthwise part: K*K*I, none for a pointwise convolution."""
        return self.kernel_area * self.in_channels if self.kernel_area > 1 else 0

    @property
    def bias_params(self) -> int:
        """O where the convolution has a bias, which every substitute keeps; else 0."""
        return self.out_channels if self.bias else 0


class Method(BaseModel, ABC):
    """Settings of one structured substitution, and its exact counts.

    Counting makes no tensor. A method whose size is set by one continuous number names that field in `scale`; counts
    must not fall when the number grows. A method whose size is set by an integer (layers, groups) lists its distinct
    settings in `settings_by_size`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scale: ClassVar[str | None] = None

    name: str

    @abstractmethod
    def params(self, shape: ConvShape) -> int:
        """Count the parameters of the layer for `shape`, bias included."""

    @abstractmethod
    def mult_adds(self, shape: ConvShape) -> int:
        """Count the mult-adds for one image, by the rules of docs/background/methods.md."""

    def study_mult_adds(self, shape: ConvShape) -> int:
        """Count the mult-adds for one image as the study of 2018 and 2019 did, where it did so otherwise."""
        return self.mult_adds(shape)

    @abstractmethod
    def build(self, shape: ConvShape) -> nn.Module:
        """Build the layer that replaces a convolution of `shape`, initialised at random."""

    def infeasible(self, shape: ConvShape) -> str | None:
        """Return why this setting cannot replace a convolution of `shape`; None where it can."""
        return None

    def signature(self, shape: ConvShape) -> tuple[Any, ...]:
        """Return what is built for `shape`: settings with equal signatures give the same layer."""
        return (self.name, *(value for key, value in sorted(self.model_dump().items()) if key != "name"))

    def with_scale(self, value: float) -> Method:
        """Return the same settings at another scale.

        Args:
            value: the new value of the field that `scale` names.

        Raises:
            TypeError: the method has no continuous scale.
        """
        if self.scale is None:
            raise TypeError(f"`with_scale` needs a method with a continuous scale, but {self.name} has none")
        return self.model_copy(update={self.scale: value})

    def settings_by_size(self, shapes: Iterable[ConvShape]) -> Iterable[Method]:
        """Return every setting that differs from this one in size only, in any order.

        For a method without `scale`: these are the settings among which a budget is solved.

        Args:
            shapes: the convolutions to replace.
        """
        return (self,)


class SeparableMethod(Method):
    """Depthwise K x K (absent for K = 1), then a pointwise map I -> O that the subclass defines."""

    @abstractmethod
    def map_params(self, in_channels: int, out_channels: int) -> int:
        """Count the parameters of the pointwise map, without bias."""

    @abstractmethod
    def make_map(self, in_channels: int, out_channels: int, **options: Any) -> StructuredMap:
        """Build the pointwise map; `options` are `stride`, `padding` and `bias`."""

    def map_mult_adds(self, in_channels: int, out_channels: int) -> int:
        """Count the mult-adds of the pointwise map at one position.

        A map whose weight is rebuilt from factors counts as the dense one, as in the study of 2018-19.
        """
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
    """Build the depthwise part of `shape`: its stride, padding and dilation, no bias.

    Its weight has variance 1 / K^2: no ReLU stands between it and the pointwise map, so that each keeps its input's
    variance.
    """
    conv = nn.Conv2d(
        shape.in_channels, shape.in_channels, shape.kernel, stride=shape.stride, padding=shape.padding,
        dilation=shape.dilation, groups=shape.in_channels, bias=False,
    )  # fmt: skip
    init_normal(conv.weight, 1 / math.sqrt(shape.kernel_area))
    return conv
