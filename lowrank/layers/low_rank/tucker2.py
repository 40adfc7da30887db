"""Tucker-2: a convolution as 1 x 1, a K x K core and 1 x 1.

Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile applications".

A K x K convolution becomes three: 1 x 1 from I to R1 channels, a K x K core from R1 to R2, and 1 x 1 from R2 to O. They
have I * R1 + KH * KW * R1 * R2 + R2 * O parameters, I and O being the channels of one group. For a 1 x 1 kernel the
core would be a matrix between two others, so one rank is enough: the core is left out, as in `svd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.whole_kernel import Decomposition, Stage, WholeKernelMethod, pointwise, spatial
from lowrank.utils import robust_eigh


class Tucker2(WholeKernelMethod):
    """Settings of Tucker-2: `in_rank` is R1 and `out_rank` is R2, both for one group."""

    rank_names: ClassVar[tuple[str, ...]] = ("in_rank", "out_rank")

    name: Literal["tucker2"] = "tucker2"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        i, o = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return min(i, o * shape.kernel_area), min(o, i * shape.kernel_area)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        core_in, core_out = ranks[0] * shape.groups, ranks[1] * shape.groups
        return (
            pointwise("reduce", shape.in_channels, core_in, shape, shape.in_area),
            spatial("core", core_in, core_out, shape, shape.out_area),
            pointwise("expand", core_out, shape.out_channels, shape, shape.out_area),
        )

    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Compute the singular vectors of the unfoldings along I and along O, the leading ones first."""
        return left_vectors(kernel.transpose(0, 1).flatten(1)), left_vectors(kernel.flatten(1))

    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        """Truncate by HOSVD: project the kernel on leading singular vectors of both unfoldings."""
        in_vectors, out_vectors = (
            leading_columns(vectors, rank) for vectors, rank in zip(decomposition.parts, ranks, strict=True)
        )
        core = torch.einsum("os,oiab,ir->srab", out_vectors, decomposition.kernel, in_vectors)
        return [in_vectors.T[:, :, None, None], core, out_vectors[:, :, None, None]]


def left_vectors(matrix: Tensor) -> Tensor:
    """Compute all left singular vectors of a matrix (M, N), float64, as columns (M, M), the leading ones first."""
    return robust_eigh(matrix @ matrix.mT)[1].flip(1)


def leading_columns(vectors: Tensor, rank: int) -> Tensor:
    """Return the first columns of a matrix.

    Args:
        vectors: (M, K).
        rank: how many columns.

    Returns:
        (M, rank); columns beyond K are zero.
    """
    columns = vectors.new_zeros(len(vectors), rank)
    columns[:, : vectors.shape[1]] = vectors[:, :rank]
    return columns
