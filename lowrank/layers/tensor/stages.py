"""CP factors contracted with the activations in three stages, on a CPU, where a map is large.

Letters: O x I map, R rank, N positions of all images. The first sizes make n = O / p, the last m = I / q, those in
between p * q, so that `W[(n, p), (q, m)] = sum_r a[n, r] b[p, q, r] c[m, r]`. Then

    y[N, r, q] = sum_m c[m, r] x[N, q, m]        R * I mult-adds a position
    z[N, r, p] = sum_q b[p, q, r] y[N, r, q]     R * p * q, a convolution of R groups
    W x        = sum_r a[n, r] z[N, r, p]        R * O

where the weight takes I * O. What is in between is about as wide as the map, so a small one, which waits for memory
rather than for arithmetic, gains nothing. A GPU goes by the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

STAGED_FROM = 2**17
"""Entries of a map from which on three stages pay: at full rank a step of 256 -> 512 on 8 x 8 images takes 0.6 of the
product's time, 1024 -> 1024 on 4 x 4 a third; of 256 -> 256 the same, of 128 -> 256 on 16 x 16 three times as much."""

WAIST_PAYS = 0.4  # share of the dense mult-adds below which two thin products are faster still, where there are such
LEAST = (4, 8)  # p and q: groups of fewer channels have no fast convolution


class Stages(NamedTuple):
    """The first size of the middle, the first one behind it, and the channels p and q of its groups."""

    begin: int
    end: int
    p: int
    q: int


@lru_cache(maxsize=65536)
def cheapest_stages(sizes: tuple[int, ...], in_channels: int, out_channels: int) -> Stages | None:
    """The stages of fewest mult-adds for a map; None where it is small, or its sizes cannot be divided so."""
    if in_channels * out_channels < STAGED_FROM:
        return None
    found = []
    for begin in range(1, len(sizes) - 1):
        for end in range(begin + 1, len(sizes)):
            rows, columns = prod(sizes[:begin]), prod(sizes[end:])
            if out_channels % rows == 0 and in_channels % columns == 0:
                found.append(Stages(begin, end, out_channels // rows, in_channels // columns))
    wide = [each for each in found if each.p >= LEAST[0] and each.q >= LEAST[1]]
    return min(wide, key=lambda each: each.p * each.q, default=None)


def contracted(x: Tensor, parts: Sequence[Tensor], p: int, q: int) -> Tensor:
    """(B, I, H, W) times the map of `parts` a (n, R), b (p * q, R) and c (m, R), without its weight -> (B, O, H, W)."""
    a, b, c = parts
    batch, _, height, width = x.shape
    rank = a.shape[1]
    last = x.permute(0, 2, 3, 1).reshape(-1, len(c)) @ c  # rows (N, q)
    y = last.view(-1, q, rank).transpose(1, 2).reshape(batch, height, width, rank * q).permute(0, 3, 1, 2)
    groups = b.view(p, q, rank).permute(2, 0, 1).reshape(rank * p, q, 1, 1)
    z = functional.conv2d(y, groups, groups=rank).permute(0, 2, 3, 1).reshape(-1, rank, p)
    return torch.matmul(a, z).view(batch, height, width, -1).permute(0, 3, 1, 2)
