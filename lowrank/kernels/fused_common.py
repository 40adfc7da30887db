"""What the maps that are joined with their norms share: tiles of rows, statistics, gradients from sums.

A map y = W x of each position's inputs x, then y's batch norm. All that the norm's gradient does is linear, so that a
map's gradients come from sums over all positions. With g the gradient behind the norm's ReLU and pooling:

    A = g x',  P = x x',  sum g,  sum x;  then sum g y = the diagonal of W A',  sum y x' = W P
    dW = scale (A - mean(g) sum(x)' - mean(g z) sum(z x)'),  z = (y - mean y) / deviation

The way forward rounds y to the format of x, as a map that is written would be, these sums do not: the two agree as far
as that format tells a channel's values from its mean.

Letters: R rows (positions of all images), C out-channels, T inputs of a position, K the power of 2 that holds them,
CH channels of a program, G programs of a reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.batch_norm import scale_and_shift
from lowrank.kernels.depthwise import MULTIPROCESSORS, summed


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel's work is cut, and what each program may use."""

    rows: int  # of a tile
    part: int  # out-channels of a program; 0: all
    warps: int
    stages: int  # tiles under way, one of them being worked on
    programs_per_processor: int  # programs of a processor


def cut(rows: int, blocks: int, config: LaunchConfig) -> tuple[dict[str, int], tuple[int, int]]:
    """The programs share tiles of rows; those that read the same rows run side by side."""
    height = min(config.rows, max(16, triton.next_power_of_2(rows)))
    tiles = triton.cdiv(rows, height)
    programs = min(tiles, max(1, MULTIPROCESSORS * config.programs_per_processor // blocks))
    constants = {
        "N": height, "TURNS": triton.cdiv(tiles, programs), "num_warps": config.warps, "num_stages": config.stages
    }  # fmt: skip
    return constants, (blocks, programs)


@triton.jit
def taken_in(values, inside, count, centre, spread, seen):
    """Each channel's mean and summed squared distances from it over `seen` positions, a tile's (channels, N) added.

    By Chan's formula, in which nothing cancels; `count` of the tile's positions are inside, values outside are zero.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    mean = tl.sum(values, 1) / tl.maximum(count, 1.0)
    apart = tl.where(inside, values - mean[:, None], 0.0)
    step, share = mean - centre, count / tl.maximum(seen + count, 1.0)
    spread += tl.sum(apart * apart, 1) + step * step * seen * share
    return centre + step * share, spread, seen + count


@triton.jit
def weights(matrix, channel, tap, C: tl.constexpr, T: tl.constexpr):
    """Rows of a matrix (C, T), filled up with zeros."""
    filled = (channel < C)[:, None] & (tap < T)[None, :]
    return tl.load(matrix + channel[:, None] * T + tap[None, :], mask=filled, other=0.0)


@triton.jit
def _merge_kernel(
    means, spreads, counts, mean, variance, R, G,
    C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """The mean and variance of all rows from those of G programs."""
    channel, row = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, N)
    mask = (row < G)[:, None] & (channel < C)[None, :]
    place = row[:, None] * C + channel[None, :]
    count = tl.load(counts + row, mask=row < G, other=0.0)[:, None]
    centres = tl.load(means + place, mask=mask, other=0.0)
    first = tl.load(means + channel, mask=channel < C, other=0.0)
    centre = first + tl.sum((centres - first[None, :]) * count, 0) / R
    apart = centres - centre[None, :]
    spread = tl.sum(tl.load(spreads + place, mask=mask, other=0.0) + apart * apart * count, 0)
    tl.store(mean + channel, centre, mask=channel < C)
    tl.store(variance + channel, spread / R, mask=channel < C)


@triton.jit
def _gradients_kernel(
    sums, matrix, weight, bias, mean, variance, to_matrix, to_weight, to_bias, R, eps,
    C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ONE: tl.constexpr, WIDTH: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """The gradients from A and, below it, P; column ONE has sum g and, below it, sum x."""
    channel, tap = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    known = (channel < C)[:, None]
    scale, _, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    scale, inverse, centre = tl.trans(scale), tl.trans(inverse), tl.trans(centre)  # (CH, 1)
    taps = weights(matrix, channel, tap, C, T).to(tl.float32)
    met = tl.load(sums + channel[:, None] * WIDTH + tap[None, :], mask=known, other=0.0)
    came = tl.load(sums + channel[:, None] * WIDTH + ONE, mask=known, other=0.0)
    with_normal = (tl.sum(taps * met, 1)[:, None] - centre * came) * inverse
    inputs = tl.load(sums + (C + tap) * WIDTH + ONE)[None, :]
    products = tl.load(sums + (C + tap[:, None]) * WIDTH + tap[None, :])
    # Three products of ten bits each, as near as float32 and faster by far; the taps are known to fewer
    normal = (tl.dot(taps, products, input_precision="tf32x3") - centre * inputs) * inverse
    found = scale * (met - came / R * inputs - with_normal / R * normal)
    target = to_matrix + channel[:, None] * T + tap[None, :]
    tl.store(target, found.to(to_matrix.dtype.element_ty), mask=known & (tap < T)[None, :])
    first = tl.arange(0, 1)[None, :]
    tl.store(to_weight + channel[:, None] + first, with_normal, mask=known)
    tl.store(to_bias + channel[:, None] + first, came, mask=known)


def merged(means: Tensor, spreads: Tensor, counts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Each channel's mean and biased variance over all rows, from those that each program found, (programs, C)."""
    programs, channels = means.shape
    mean, variance = (means.new_empty(channels) for _ in range(2))
    _merge_kernel[(triton.cdiv(channels, 16),)](
        means, spreads, counts, mean, variance, rows, programs, C=channels, N=triton.next_power_of_2(programs), CH=16
    )
    return mean, variance


def gradients(
    parts: Tensor, one: int, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the matrix, (C, T), and of the norm's weight and bias.

    Args:
        parts: of each program A and below it P, float32 (programs, C + K, columns).
        one: the column that has sum g and below it sum x.
    """
    outs, taps = matrix.shape
    found = (torch.empty_like(matrix), torch.empty_like(weight), torch.empty_like(bias))
    sizes = {"C": outs, "T": taps, "K": parts.shape[1] - outs, "ONE": one, "WIDTH": parts.shape[2]}
    _gradients_kernel[(triton.cdiv(outs, 16),)](
        summed(parts, torch.float32), matrix, weight, bias, mean, variance, *found, rows, eps, **sizes, CH=16,
        num_warps=8 if sizes["K"] > 64 else 4,
    )  # fmt: skip
    return found
