"""Tucker-2: 1 x 1, a K x K core, 1 x 1 (Kim et al. 2016, "Compression of deep convolutional neural networks").

I * R1 + KH * KW * R1 * R2 + R2 * O parameters for one group. Where the kernel is 1 x 1 the core would be a matrix
between two others, so one rank is enough: the core is left out and the form is that of `svd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import Stage, WholeKernelMethod, pointwise, spatial
from lowrank.utils import robust_svd


class Tucker2(WholeKernelMethod):
    """1 x 1 convolutions to R1 channels and to O, a K x K one to R2 channels between."""

    rank_names: ClassVar[tuple[str, ...]] = ("in_rank", "out_rank")

    name: Literal["tucker2"] = "tucker2"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        i, o = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return min(i, o * shape.kernel_area), min(o, i * shape.kernel_area)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        first, second = ranks[0] * shape.groups, ranks[1] * shape.groups
        return (
            pointwise("reduce", shape.in_channels, first, shape, shape.in_area),
            spatial("core", first, second, shape, shape.out_area),
            pointwise("expand", second, shape.out_channels, shape, shape.out_area),
        )

    def truncate_kernel(self, dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """HOSVD: the leading left vectors of both channel unfoldings, and the core between them."""
        out_vectors = leading_vectors(dense.flatten(1), ranks[1])
        in_vectors = leading_vectors(dense.transpose(0, 1).flatten(1), ranks[0])
        core = torch.einsum("os,oiab,ir->srab", out_vectors, dense, in_vectors)
        return [in_vectors.T[:, :, None, None], core, out_vectors[:, :, None, None]]


def leading_vectors(matrix: Tensor, rank: int) -> Tensor:
    """Compute the leading left singular vectors of a matrix.

    Args:
        matrix: (M, N).
        rank: how many.

    Returns:
        (M, rank); columns beyond min(M, N) are zero.
    """
    left_vectors = robust_svd(matrix)[0][:, :rank]
    vectors = matrix.new_zeros(matrix.shape[0], rank)
    vectors[:, : left_vectors.shape[1]] = left_vectors
    return vectors
