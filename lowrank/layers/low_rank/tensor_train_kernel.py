"""A tensor train of the four-dimensional kernel: 1 x 1, KH x 1, 1 x KW, 1 x 1 (Oseledets 2011, TT-SVD).

The weight in the order I, KH, KW, O has four factors: I * R1 + KH * R1 * R2 + KW * R2 * R3 + R3 * O parameters for one
group.

Letters: I in-channels, O out-channels, KH x KW the kernel, R1 `in_rank`, R2 `middle_rank`, R3 `out_rank`, all of one
group.
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
    truncated_svd,
)
from lowrank.utils import factor_matrix


class TensorTrainKernel(WholeKernelMethod):
    """Four convolutions: 1 x 1 to R1 channels, KH x 1 to R2, 1 x KW to R3, 1 x 1 to O."""

    rank_names: ClassVar[tuple[str, ...]] = ("in_rank", "middle_rank", "out_rank")

    name: Literal["tensor_train_kernel"] = "tensor_train_kernel"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        in_channels, out_channels = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        height, width = shape.kernel
        return (  # each the smaller side of the matrix that TT-SVD cuts there
            min(in_channels, height * width * out_channels),
            min(in_channels * height, width * out_channels),
            min(in_channels * height * width, out_channels),
        )

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        first, second, third = (rank * shape.groups for rank in ranks)  # channels of all groups
        return (
            pointwise("reduce", shape.in_channels, first, shape, shape.in_area),
            spatial("vertical", first, second, shape, shape.vertical_area, "h"),
            spatial("horizontal", second, third, shape, shape.out_area, "w"),
            pointwise("expand", third, shape.out_channels, shape, shape.out_area),
        )

    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return factor_matrix(kernel.permute(1, 2, 3, 0).flatten(1))  # (I, KH * KW * O)

    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        """Run TT-SVD from the left: each truncated SVD splits one factor off the remainder of the one before."""
        out_channels, _, height, width = decomposition.kernel.shape
        first, remainder = truncated_factors(decomposition.parts, ranks[0])
        second, remainder = truncated_svd(remainder.reshape(ranks[0] * height, -1), ranks[1])
        third, fourth = truncated_svd(remainder.reshape(ranks[1] * width, out_channels), ranks[2])
        vertical = second.reshape(ranks[0], height, ranks[1]).permute(2, 0, 1)[:, :, :, None]
        horizontal = third.reshape(ranks[1], width, ranks[2]).permute(2, 0, 1)[:, :, None, :]
        return [first.T[:, :, None, None], vertical, horizontal, fourth.T[:, :, None, None]]
