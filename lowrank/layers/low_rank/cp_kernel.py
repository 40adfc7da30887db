"""CP of the whole kernel: 1 x 1, depthwise K x 1, depthwise 1 x K, 1 x 1 (Lebedev et al. 2015).

R * (I + KH + KW + O) parameters for one group. The fit is by alternating least squares with a small ridge, without
which components grow against each other and training diverges (Phan et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.tucker2 import left_vectors
from lowrank.layers.low_rank.whole_kernel import Decomposition, Stage, WholeKernelMethod, pointwise, spatial

SWEEPS = 40
RIDGE = 1e-6
"""Added to the diagonal of each least-squares problem, relative to its mean."""


class CPKernel(WholeKernelMethod):
    """1 x 1 to R channels, depthwise KH x 1, depthwise 1 x KW, 1 x 1 to O."""

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)

    name: Literal["cp_kernel"] = "cp_kernel"

    def full_ranks(self, shape: ConvShape) -> tuple[int, ...]:
        i, o = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return (shape.kernel_area * min(i, o),)

    def kernel_stages(self, shape: ConvShape, ranks: Sequence[int]) -> tuple[Stage, ...]:
        middle = ranks[0] * shape.groups
        vertical = spatial("vertical", middle, middle, shape, shape.vertical_area, "h")
        horizontal = spatial("horizontal", middle, middle, shape, shape.out_area, "w")
        return (
            pointwise("reduce", shape.in_channels, middle, shape, shape.in_area),
            vertical._replace(groups=middle),
            horizontal._replace(groups=middle),
            pointwise("expand", middle, shape.out_channels, shape, shape.out_area),
        )

    def decompose_kernel(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Compute the singular vectors of the four unfoldings, along I, KH, KW and O."""
        tensor = kernel.permute(1, 2, 3, 0)
        return tuple(left_vectors(tensor.movedim(mode, 0).flatten(1)) for mode in range(4))

    def truncate_kernel(self, decomposition: Decomposition, ranks: Sequence[int]) -> list[Tensor]:
        down, vertical, horizontal, up = cp_factors(decomposition, ranks[0])
        middle = [vertical.T[:, None, :, None], horizontal.T[:, None, None, :]]
        return [down.T[:, :, None, None], *middle, up[:, :, None, None]]


def cp_factors(decomposition: Decomposition, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CP factors of a kernel (O, I, KH, KW): (I, R), (KH, R), (KW, R) and (O, R), by alternating least squares.

    Starts from leading singular vectors of each unfolding, padded by fixed pseudo-random ones; at the rank of the
    exact form (one component for each tap and channel of the smaller side) that form is returned.
    """
    dense = decomposition.kernel
    o, i, height, width = dense.shape
    if rank >= height * width * min(i, o):
        return _exact(dense, rank)
    tensor = dense.permute(1, 2, 3, 0)
    generator = torch.Generator().manual_seed(rank)
    factors = [_first_guess(vectors, rank, generator) for vectors in decomposition.parts]
    for _ in range(SWEEPS):
        for mode in range(4):
            others = [factor for index, factor in enumerate(factors) if index != mode]
            unfolded = tensor.movedim(mode, 0).flatten(1)
            products = torch.einsum("ar,br,cr->abcr", *others).flatten(0, 2)
            gram = torch.stack([factor.T @ factor for factor in others]).prod(0)
            gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(rank, dtype=gram.dtype, device=gram.device)
            factors[mode] = torch.linalg.solve(gram, (unfolded @ products).T).T
            if mode < 3:
                norms = factors[mode].norm(dim=0).clamp_min(1e-30)
                factors[mode] = factors[mode] / norms
    sizes = factors[3].norm(dim=0).clamp_min(1e-30) ** 0.25
    factors[3] = factors[3] / sizes**3
    return factors[0] * sizes, factors[1] * sizes, factors[2] * sizes, factors[3]


def _first_guess(vectors: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Leading columns (M, rank) of `vectors` (M, M), and random ones of length 1 beyond."""
    guess = torch.randn(len(vectors), rank, generator=generator, dtype=torch.float64).to(vectors)
    guess = guess / guess.norm(dim=0)
    used = min(rank, vectors.shape[1])
    guess[:, :used] = vectors[:, :used]
    return guess


def _exact(dense: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One component for each kernel tap and each channel of the side that has fewer."""
    o, i, height, width = dense.shape
    smaller = min(i, o)
    channel, row, column = (
        index.flatten().to(dense.device)
        for index in torch.meshgrid(torch.arange(smaller), torch.arange(height), torch.arange(width), indexing="ij")
    )
    count = len(channel)
    down, vertical = dense.new_zeros(i, rank), dense.new_zeros(height, rank)
    horizontal, up = dense.new_zeros(width, rank), dense.new_zeros(o, rank)
    position = torch.arange(count, device=dense.device)
    vertical[row, position] = 1
    horizontal[column, position] = 1
    if i <= o:
        down[channel, position] = 1
        up[:, :count] = dense[:, channel, row, column]
    else:
        up[channel, position] = 1
        down[:, :count] = dense[channel, :, row, column].T
    return down, vertical, horizontal, up
