"""Truncated SVD of the whole kernel: KH x KW to R channels, then 1 x 1 (Zhang et al. 2015; Denton et al. 2014).

The weight as a matrix O x (I * KH * KW) is truncated to rank R: R * (I * KH * KW + O) parameters for one group.

Letters: I in-channels, O out-channels and R rank of one group, KH x KW the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import (
    Decomposition,
    Stage,
    WholeKernelMethod,
    pointwise,
    spatial,
    truncated_factors,
)
from lowrank.utils import factor_matrix


class SVD(WholeKernelMethod):
    """A KH x KW convolution to R channels and a 1 x 1 convolution to O.

    A linear map becomes two linear maps, through R features.
    """

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    name: Literal["svd"] = "svd"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        in_channels, out_channels = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return (min(out_channels, in_channels * shape.kernel_area),)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        middle = ranks[0] * shape.groups
        return (
            spatial("reduce", shape.in_channels, middle, shape, shape.out_area),
            pointwise("expand", middle, shape.out_channels, shape, shape.out_area),
        )

    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return factor_matrix(kernel.flatten(1))

    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        expand, reduce = truncated_factors(decomposition.parts, ranks[0])  # (O, R), (R, I * KH * KW)
        return [reduce.reshape(-1, *decomposition.kernel.shape[1:]), expand[:, :, None, None]]
