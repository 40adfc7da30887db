"""What tensor train, Tucker and CP share: how an O x I matrix is cut into d dimensions, and products of trains.

Letters: N = I * O, d number of dimensions, n_k sizes, r_k / R_k ranks between dimension k and k + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

MIN_DIMS, MAX_DIMS = 2, 9


def _smallest_divisor_from(n: int, least: int) -> int:
    """The smallest divisor of n that is >= least; n itself if least > n."""
    if least >= n:
        return n
    return next(divisor for divisor in range(max(least, 1), n + 1) if n % divisor == 0)


@cache
def split_sizes(in_channels: int, out_channels: int, dims: int) -> tuple[int, ...]:
    """Sizes n_1 .. n_d of the O x I matrix seen as d dimensions (RULES, "Dimensions"); their product is I * O."""
    total = in_channels * out_channels
    root = total ** (1 / dims)
    nearest = round(root)
    if abs(root - nearest) < 1e-6 and nearest**dims == total:
        return (nearest,) * dims
    if dims == 2:
        return (out_channels, in_channels)
    sizes, left = [], total
    for _ in range(dims - 1):
        sizes.append(_smallest_divisor_from(left, nearest))
        left //= sizes[-1]
    return (*sizes, left)


@cache
def full_ranks(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The largest ranks a train of these sizes can need: min(n_1..n_k, n_{k+1}..n_d) for k = 1..d-1."""
    return tuple(min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes)))


def train_params(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Parameters of a train with interior `ranks`: sum of r_{k-1} * n_k * r_k."""
    edged = (1, *ranks, 1)
    return sum(left * size * right for (left, right), size in zip(pairwise(edged), sizes, strict=True))


def best_split(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Where to cut a train so that multiplying out both halves and then joining them costs fewest mult-adds."""
    edged = (1, *ranks, 1)

    def cost(cut: int) -> int:
        left = sum(prod(sizes[: k + 1]) * edged[k] * edged[k + 1] for k in range(1, cut))
        right = sum(prod(sizes[k:]) * edged[k] * edged[k + 1] for k in range(cut, len(sizes) - 1))
        return left + right + prod(sizes) * edged[cut]

    return min(range(1, len(sizes)), key=cost)


def train_cost(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Mult-adds of `multiply_train` at the cut of `best_split`."""
    edged, cut = (1, *ranks, 1), best_split(sizes, ranks)
    left = sum(prod(sizes[: k + 1]) * edged[k] * edged[k + 1] for k in range(1, cut))
    right = sum(prod(sizes[k:]) * edged[k] * edged[k + 1] for k in range(cut, len(sizes) - 1))
    return left + right + prod(sizes) * edged[cut]


def train_halves(cores: Sequence[Tensor], cut: int) -> tuple[Tensor, Tensor]:
    """The two halves of a train of cores (.., r_{k-1}, n_k, r_k): (.., n_1 * .. * n_cut, r) and (.., r, the others).

    Both are multiplied out towards the cut: matrix products of views only, so that it compiles without a graph break
    and runs as few large products. Dimensions in front are a stack of trains.
    """
    stack = cores[0].shape[:-3]
    left = cores[0].flatten(-3, -2)  # (n_1, r_1)
    for core in cores[1:cut]:
        left = (left @ core.flatten(-2)).reshape(*stack, -1, core.shape[-1])  # (n_1..n_k, r_k)
    right = cores[-1].flatten(-2)  # (r_{d-1}, n_d)
    for core in reversed(cores[cut:-1]):
        right = (core.flatten(-3, -2) @ right).reshape(*stack, core.shape[-3], -1)  # (r_{k-1}, n_k..n_d)
    return left, right


def multiply_train(cores: Sequence[Tensor], cut: int) -> Tensor:
    """Multiply out cores (.., r_{k-1}, n_k, r_k) into (.., N), row-major over n_1 .. n_d: its halves, joined last."""
    left, right = train_halves(cores, cut)
    return (left @ right).flatten(-2)


def train_inner_product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two trains of cores (r_{k-1}, n_k, r_k), without multiplying either out.

    Carries the (r_k, r_k) matrix of products of the first k cores along the trains (Oseledets 2011, algorithm 4).
    """
    carried = left[0].flatten(0, 1).T @ right[0].flatten(0, 1)
    for one, other in zip(left[1:], right[1:], strict=True):
        through = (carried @ other.flatten(1)).reshape(-1, other.shape[2])  # (r_{k-1} * n_k, r_k)
        carried = one.flatten(0, 1).T @ through
    return carried.sum()


def tt_svd(dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """TT-SVD of a d-dimensional tensor to the given interior ranks; cores (r_{k-1}, n_k, r_k).

    Decomposed in float64 by tntorch. Ranks above what the tensor can have are filled up with zeros, so that the
    cores have exactly the shapes asked for.
    """
    import tntorch  # only needed for this start; importing it costs as much as torch's own

    found = tntorch.Tensor(dense.detach().double().cpu(), ranks_tt=list(ranks)).cores
    edged = (1, *ranks, 1)
    cores = []
    for k, core in enumerate(found):
        padded = torch.zeros(edged[k], dense.shape[k], edged[k + 1], dtype=torch.float64)
        padded[: core.shape[0], :, : core.shape[2]] = core
        cores.append(padded)
    return cores
