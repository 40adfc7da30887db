"""Spatial SVD: K x 1, then 1 x K (Jaderberg, Vedaldi and Zisserman 2014).

The weight as a matrix (I * KH) x (KW * O), cut to rank R: R * (I * KH + KW * O) parameters for one group. The first
stage runs on the full width of the image, so a stride makes it cost more than its parameters suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import Decomposition, Stage, WholeKernelMethod, spatial, truncated_factors
from lowrank.utils import factor_matrix


class SpatialSVD(WholeKernelMethod):
    """A KH x 1 convolution to R channels and a 1 x KW convolution to O."""

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    name: Literal["spatial_svd"] = "spatial_svd"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        i, o = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return (min(i * shape.kernel[0], o * shape.kernel[1]),)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        middle = ranks[0] * shape.groups
        return (
            spatial("vertical", shape.in_channels, middle, shape, shape.vertical_area, "h"),
            spatial("horizontal", middle, shape.out_channels, shape, shape.out_area, "w"),
        )

    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return factor_matrix(kernel.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))  # (I * KH, O * KW)

    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        o, i, height, width = decomposition.kernel.shape
        first, second = truncated_factors(decomposition.parts, ranks[0])
        vertical = first.T.reshape(-1, i, height, 1)
        horizontal = second.reshape(-1, o, width).permute(1, 0, 2)[:, :, None, :]
        return [vertical, horizontal]
