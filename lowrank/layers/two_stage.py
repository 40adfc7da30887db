"""Maps that a CPU may apply in two stages: the factors are contracted with the activations, not into a weight.

A tensor of sizes n_1 .. n_d that is cut after n_c is the product of a left half (n_1 .. n_c, r) and a right half
(r, n_{c+1} .. n_d). The O x I matrix that it holds is then a product of an O x m and an m x I matrix: m = r * a where
n_1 .. n_c make O / a, and m = r * b where they make O * b. Through so few channels a map may take far fewer mult-adds
than by its weight. A GPU, which is bound by the traffic of the activations, gains nothing.

Letters: I in-channels, O out-channels, m channels between the stages, n_k sizes, r rank at the cut.
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

# Share of the dense mult-adds up to which two stages are faster on a CPU. Below 1, because the channels in between
# must be written and read.
MAX_COST_RATIO = 0.7


class Cut(NamedTuple):
    """A cut of a tensor: after how many sizes, and the channels m between the two stages."""

    position: int
    channels: int


@lru_cache(maxsize=65536)
def best_cut(sizes: tuple[int, ...], ranks: tuple[int, ...], out_channels: int) -> Cut | None:
    """Find the cut with the fewest channels in between.

    Args:
        sizes: n_1 .. n_d.
        ranks: of the d - 1 cuts.
        out_channels: O.

    Returns:
        None where, at every cut, neither O divides the rows of the left half nor these divide O.
    """
    cuts = []
    for position in range(1, len(sizes)):
        rows = prod(sizes[:position])
        if out_channels % rows == 0 or rows % out_channels == 0:
            cuts.append(Cut(position, ranks[position - 1] * max(out_channels // rows, rows // out_channels)))
    return min(cuts, key=lambda cut: cut.channels, default=None)


def split_product(left_half: Tensor, right_half: Tensor, out_channels: int) -> tuple[Tensor, Tensor]:
    """Turn the halves of a tensor into the matrices of the two stages.

    The product of the halves, read row by row as an O x I matrix, is the product of the two results. The factor that
    outputs and rows do not share is carried through unchanged, by an identity in one of them.

    Args:
        left_half: (rows, r).
        right_half: (r, columns).
        out_channels: O; it divides the rows, or they divide it.

    Returns:
        (O, m) and (m, I).
    """
    rows, rank = left_half.shape
    if rows <= out_channels:
        identity = torch.eye(out_channels // rows, dtype=left_half.dtype, device=left_half.device)
        up = left_half[:, None, :, None] * identity[None, :, None, :]  # (rows, a, r, a)
        return up.reshape(out_channels, -1), right_half.reshape(rank * len(identity), -1)
    identity = torch.eye(rows // out_channels, dtype=right_half.dtype, device=right_half.device)
    down = identity[:, None, :, None] * right_half[None, :, None, :]  # (b, r, b, columns)
    return left_half.reshape(out_channels, -1), down.reshape(len(identity) * rank, -1)


class TwoStageMap(FactoredMap):
    """A map whose weight is a tensor of sizes n_1 .. n_d with a rank at each cut.

    `cost_ratio` is the share of the dense mult-adds that the best cut takes, and `cut` that cut where it is worth it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, sizes: tuple[int, ...], ranks: tuple[int, ...], **options: Any
    ):
        super().__init__(in_channels, out_channels, **options)
        cut = best_cut(sizes, ranks, out_channels)
        self.cost_ratio = cut.channels * (in_channels + out_channels) / (in_channels * out_channels) if cut else 1.0
        self.cut = cut if self.cost_ratio <= MAX_COST_RATIO else None

    @abstractmethod
    def halves(self, factors: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
        """Multiply the factors into the halves of a cut.

        Args:
            factors: in the order of `factors()`, with or without a dimension of stacked maps in front.
            position: after how many sizes the tensor is cut.

        Returns:
            (.., n_1 * .. * n_position, r) and (.., r, product of the other sizes).
        """

    def builds_weight(self, on_gpu: bool) -> bool:
        return on_gpu or not self.contracts_on_cpu() or torch.compiler.is_compiling()

    def contracts_on_cpu(self) -> bool:
        """Return whether a CPU contracts the factors with the activations."""
        return self.cut is not None

    def _convolve(self, x: Tensor) -> Tensor:
        if self.external_weight is not None or self.rebuild_checkpoint or self.builds_weight(x.is_cuda):
            return super()._convolve(x)
        return self._contract(x)

    def _contract(self, x: Tensor) -> Tensor:
        assert self.cut is not None
        up, down = split_product(*self.halves(self.factors(), self.cut.position), self.out_channels)
        between = convolve(x, down[:, :, None, None], None, self.stride, self.padding)
        return convolve(between, up[:, :, None, None], self.bias)
