"""Maps that can be cut into two halves, as trains can: on a CPU their factors are contracted with the activations.

A tensor of sizes n_1 .. n_d that is cut after n_c is a product of a left half (n_1 .. n_c, r) and a right half
(r, n_{c+1} .. n_d). The O x I matrix that it stands for then is one of O x m and m x I matrices: where n_1 .. n_c make
O / a, m = r * a, and where they make O * b, m = r * b. Through so few channels a map may take far fewer mult-adds than
by its weight; a GPU, which is bound by the traffic of the activations, gains nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank.layers.factored import FactoredMap
from lowrank.layers.functional import convolve

MAX_COST_RATIO = 0.7
"""Share of the dense mult-adds up to which two thin products are faster on a CPU, the middle's traffic included."""


class Cut(NamedTuple):
    """Where a tensor is cut, and the channels m in between."""

    position: int
    channels: int


@lru_cache(maxsize=65536)
def best_cut(sizes: tuple[int, ...], ranks: tuple[int, ...], out_channels: int) -> Cut | None:
    """The cut with fewest channels in between; None where outputs divide no left half, nor the other way round."""
    found = []
    for position in range(1, len(sizes)):
        rows = prod(sizes[:position])
        if out_channels % rows == 0 or rows % out_channels == 0:
            found.append(Cut(position, ranks[position - 1] * max(out_channels // rows, rows // out_channels)))
    return min(found, key=lambda cut: cut.channels, default=None)


def split_product(left: Tensor, right: Tensor, out_channels: int) -> tuple[Tensor, Tensor]:
    """(O, m) and (m, I), whose product is left (rows, r) times right (r, columns), read row-major as O x I.

    What outputs and rows do not share is carried through unchanged: the one or the other is spread over an identity.
    """
    rows, rank = left.shape
    if rows <= out_channels:
        same = torch.eye(out_channels // rows, dtype=left.dtype, device=left.device)
        up = left[:, None, :, None] * same[None, :, None, :]  # (rows, a, r, a)
        return up.reshape(out_channels, -1), right.reshape(rank * len(same), -1)
    same = torch.eye(rows // out_channels, dtype=right.dtype, device=right.device)
    down = same[:, None, :, None] * right[None, :, None, :]  # (b, r, b, columns)
    return left.reshape(out_channels, -1), down.reshape(len(same) * rank, -1)


class TwoStageMap(FactoredMap):
    """A map of sizes n_1 .. n_d with the rank r_c at a cut after n_c."""

    def __init__(
        self, in_channels: int, out_channels: int, sizes: tuple[int, ...], ranks: tuple[int, ...], **options: Any
    ):
        super().__init__(in_channels, out_channels, **options)
        cut = best_cut(sizes, ranks, out_channels)
        # Of the dense mult-adds that the way through the waist takes
        self.cost_ratio = cut.channels * (in_channels + out_channels) / (in_channels * out_channels) if cut else 1.0
        self.cut = cut if self.cost_ratio <= MAX_COST_RATIO else None  # through which a CPU goes

    @abstractmethod
    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        """The left half (.., n_1 * .. * n_cut, r) and the right half (.., r, n_{cut+1} * .. * n_d)."""

    def builds_weight(self, on_gpu: bool) -> bool:
        return on_gpu or not self.is_contracted() or torch.compiler.is_compiling()

    def is_contracted(self) -> bool:
        """Whether a CPU contracts the factors with the activations."""
        return self.cut is not None

    def _convolved(self, x: Tensor) -> Tensor:
        if self.external_weight is not None or self.rebuild_checkpoint or self.builds_weight(x.is_cuda):
            return super()._convolved(x)
        return self._contracted(x)

    def _contracted(self, x: Tensor) -> Tensor:
        assert self.cut is not None
        up, down = split_product(*self.halves(self.factors(), self.cut.position), self.out_channels)
        thin = convolve(x, down[:, :, None, None], None, self.stride, self.padding)
        return convolve(thin, up[:, :, None, None], self.bias)
