"""Shared by tensor train, Tucker and CP: the sizes of an O x I matrix in d dimensions, and products of trains.

Letters: I in-channels, O out-channels, N = I * O, d number of dimensions, n_k sizes, r_k ranks between dimension k and
k + 1 with r_0 = r_d = 1. Core k of a train is (r_{k-1}, n_k, r_k). `..` is a stack of trains, or nothing.

Source: Oseledets 2011, "Tensor-train decomposition".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

MIN_DIMS, MAX_DIMS = 2, 9


def _smallest_divisor_from(n: int, minimum: int) -> int:
    """Return the smallest divisor of n that is >= minimum; n itself if minimum > n."""
    if minimum >= n:
        return n
    return next(divisor for divisor in range(max(minimum, 1), n + 1) if n % divisor == 0)


@cache
def split_sizes(in_channels: int, out_channels: int, dims: int) -> tuple[int, ...]:
    """Split I * O into `dims` sizes n_1 .. n_d, whose product it is, as the study of 2018-19 did.

    All are e = (I * O)^(1/d) if that is an integer, and (O, I) for d = 2. Otherwise d - 1 times the smallest divisor of
    the remainder that is at least round(e) is divided out; the last size is what remains.

    Args:
        in_channels: I.
        out_channels: O.
        dims: d.
    """
    total = in_channels * out_channels
    root = total ** (1 / dims)
    nearest = round(root)
    if abs(root - nearest) < 1e-6 and nearest**dims == total:
        return (nearest,) * dims
    if dims == 2:
        return (out_channels, in_channels)
    sizes, remainder = [], total
    for _ in range(dims - 1):
        sizes.append(_smallest_divisor_from(remainder, nearest))
        remainder //= sizes[-1]
    return (*sizes, remainder)


@cache
def full_ranks(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest ranks that a train can need: min(n_1..n_k, n_{k+1}..n_d) for k = 1..d-1."""
    return tuple(min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes)))


def train_params(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Count the parameters of a train: the sum of r_{k-1} * n_k * r_k.

    Args:
        sizes: n_1 .. n_d.
        ranks: r_1 .. r_{d-1}.
    """
    all_ranks = (1, *ranks, 1)
    return sum(before * size * after for (before, after), size in zip(pairwise(all_ranks), sizes, strict=True))


def best_split(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Find where to cut a train so that multiplying it out costs fewest mult-adds.

    Both halves are multiplied out and then joined, as `multiply_train` does.

    Args:
        sizes: n_1 .. n_d.
        ranks: r_1 .. r_{d-1}.

    Returns:
        How many cores the left half has: 1 to d - 1.
    """
    return min(range(1, len(sizes)), key=lambda position: _cost(sizes, ranks, position))


def train_cost(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Count the mult-adds of `multiply_train` at the cut of `best_split`.

    Args:
        sizes: n_1 .. n_d.
        ranks: r_1 .. r_{d-1}.

    Returns:
        Mult-adds of the whole product.
    """
    return _cost(sizes, ranks, best_split(sizes, ranks))


def _cost(sizes: Sequence[int], ranks: Sequence[int], position: int) -> int:
    """Count the mult-adds of multiplying out the halves of a train of ranks r_1 .. r_{d-1}, and of joining them."""
    all_ranks = (1, *ranks, 1)
    left_cost = sum(prod(sizes[: k + 1]) * all_ranks[k] * all_ranks[k + 1] for k in range(1, position))
    right_cost = sum(prod(sizes[k:]) * all_ranks[k] * all_ranks[k + 1] for k in range(position, len(sizes) - 1))
    return left_cost + right_cost + prod(sizes) * all_ranks[position]


def train_halves(cores: Sequence[Tensor], position: int) -> tuple[Tensor, Tensor]:
    """Multiply out the two halves of a train, both towards the cut.

    These are matrix products of views only, so that they compile without a graph break and run as few large products.

    Args:
        cores: (.., r_{k-1}, n_k, r_k).
        position: how many cores the left half has.

    Returns:
        (.., n_1 * .. * n_position, r) and (.., r, product of the other sizes).
    """
    stack = cores[0].shape[:-3]
    left_half = cores[0].flatten(-3, -2)  # (n_1, r_1)
    for core in cores[1:position]:
        left_half = (left_half @ core.flatten(-2)).reshape(*stack, -1, core.shape[-1])  # (n_1..n_k, r_k)
    right_half = cores[-1].flatten(-2)  # (r_{d-1}, n_d)
    for core in reversed(cores[position:-1]):
        right_half = (core.flatten(-3, -2) @ right_half).reshape(*stack, core.shape[-3], -1)  # (r_{k-1}, n_k..n_d)
    return left_half, right_half


def multiply_train(cores: Sequence[Tensor], position: int) -> Tensor:
    """Multiply out a train: its halves first, then their product.

    Args:
        cores: (.., r_{k-1}, n_k, r_k).
        position: how many cores the left half has.

    Returns:
        (.., N), row-major over n_1 .. n_d.
    """
    left_half, right_half = train_halves(cores, position)
    return (left_half @ right_half).flatten(-2)


def train_inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Compute the inner product of two trains without multiplying either out.

    Passes the (r_k, r_k) matrix of products of the first k cores along the trains (Oseledets 2011, algorithm 4).

    Args:
        first: cores (r_{k-1}, n_k, r_k).
        second: cores of a train of the same sizes.

    Returns:
        A scalar, differentiable.
    """
    products = first[0].flatten(0, 1).T @ second[0].flatten(0, 1)
    for first_core, second_core in zip(first[1:], second[1:], strict=True):
        extended = (products @ second_core.flatten(1)).reshape(-1, second_core.shape[2])  # (r_{k-1} * n_k, r_k)
        products = first_core.flatten(0, 1).T @ extended
    return products.sum()


def tt_svd(dense: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Decompose a tensor into a train of given ranks by TT-SVD (Oseledets 2011, algorithm 1), in float64.

    Ranks above what the tensor can have are padded with zeros, so that the cores have exactly the shapes asked for.

    Args:
        dense: (n_1, .., n_d).
        ranks: r_1 .. r_{d-1}.

    Returns:
        Cores (r_{k-1}, n_k, r_k) on the CPU.
    """
    import tntorch  # importing it takes as long as torch itself, and only this function needs it

    decomposition = tntorch.Tensor(dense.detach().double().cpu(), ranks_tt=list(ranks)).cores
    all_ranks = (1, *ranks, 1)
    cores = []
    for k, core in enumerate(decomposition):
        padded = torch.zeros(all_ranks[k], dense.shape[k], all_ranks[k + 1], dtype=torch.float64)
        padded[: core.shape[0], :, : core.shape[2]] = core
        cores.append(padded)
    return cores
