"""A tensor train of the four-dimensional kernel: 1 x 1, K x 1, 1 x K, 1 x 1 (Oseledets 2011, TT-SVD).

The weight in the order I, KH, KW, O: I * R1 + KH * R1 * R2 + KW * R2 * R3 + R3 * O parameters for one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import Stage, WholeKernelMethod, pointwise, spatial, truncated_svd


class TensorTrainKernel(WholeKernelMethod):
    """1 x 1 to R1 channels, KH x 1 to R2, 1 x KW to R3, 1 x 1 to O."""

    rank_names: ClassVar[tuple[str, ...]] = ("in_rank", "middle_rank", "out_rank")

    name: Literal["tensor_train_kernel"] = "tensor_train_kernel"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        i, o = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        height, width = shape.kernel
        return min(i, height * width * o), min(i * height, width * o), min(i * height * width, o)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        first, second, third = (rank * shape.groups for rank in ranks)
        return (
            pointwise("reduce", shape.in_channels, first, shape, shape.in_area),
            spatial("vertical", first, second, shape, shape.vertical_area, "h"),
            spatial("horizontal", second, third, shape, shape.out_area, "w"),
            pointwise("expand", third, shape.out_channels, shape, shape.out_area),
        )

    def truncate_kernel(self, dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """TT-SVD from the left: each cut keeps the leading singular directions of what remains."""
        o, i, height, width = dense.shape
        first, remainder = truncated_svd(dense.permute(1, 2, 3, 0).reshape(i, -1), ranks[0])
        second, remainder = truncated_svd(remainder.reshape(ranks[0] * height, -1), ranks[1])
        third, fourth = truncated_svd(remainder.reshape(ranks[1] * width, o), ranks[2])
        vertical = second.reshape(ranks[0], height, ranks[1]).permute(2, 0, 1)[:, :, :, None]
        horizontal = third.reshape(ranks[1], width, ranks[2]).permute(2, 0, 1)[:, :, None, :]
        return [first.T[:, :, None, None], vertical, horizontal, fourth.T[:, :, None, None]]
