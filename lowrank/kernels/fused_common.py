"""Shared by the operations of a map and its batch norm: tiles of rows, statistics, gradients from sums.

The map is y = W x of each position's inputs x, followed by y's batch norm. Everything in the norm's gradient is linear,
so that the gradients come from sums over all positions. With g the gradient behind the norm's ReLU and pooling:

    A = g x',  P = x x',  sum g,  sum x;  then sum g y = the diagonal of W A',  sum y x' = W P
    dW = scale (A - mean(g) sum(x)' - mean(g z) sum(z x)'),  z = (y - mean y) / deviation

The forward pass rounds y to the format of x, as a map that is written would be; these sums do not. The two agree as far
as that format can tell a channel's values from its mean.

Letters: R rows (positions of all images), C out-channels, T inputs of a position, K the power of 2 that holds T, CH
channels of a program, N rows of a tile, TURNS tiles of a program, G programs of a reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.depthwise import MULTIPROCESSORS, sum_parts
from lowrank.kernels.norm_formulas import scale_and_shift


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel's work is divided, and what each program may use."""

    rows: int  # of a tile
    block_channels: int  # out-channels of a program; 0 for all
    warps: int
    stages: int  # tiles that are loaded ahead, with the one in work
    programs_per_processor: int  # that run at once


def launch_grid(rows: int, blocks: int, config: LaunchConfig) -> tuple[dict[str, int], tuple[int, int]]:
    """Divide rows among programs; those that read the same rows run side by side.

    Args:
        rows: R.
        blocks: programs that share the out-channels of a row.
        config: of the kernel.

    Returns:
        The constants of the kernel, and its grid (blocks, programs).
    """
    height = min(config.rows, max(16, triton.next_power_of_2(rows)))
    tiles = triton.cdiv(rows, height)
    programs = min(tiles, max(1, MULTIPROCESSORS * config.programs_per_processor // blocks))
    constants = {
        "N": height, "TURNS": triton.cdiv(tiles, programs), "num_warps": config.warps, "num_stages": config.stages
    }  # fmt: skip
    return constants, (blocks, programs)


@triton.jit
def update_statistics(values, inside, count, centre, spread, seen):
    """Add a tile (channels, N) to each channel's mean and summed squared distances from it over `seen` positions.

    By Chan's formula, in which no digits cancel; `count` of the tile's positions are inside, values outside are zero.
    Returns the new mean, sum and number of positions.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    mean = tl.sum(values, 1) / tl.maximum(count, 1.0)
    deviations = tl.where(inside, values - mean[:, None], 0.0)
    step, share = mean - centre, count / tl.maximum(seen + count, 1.0)
    spread += tl.sum(deviations * deviations, 1) + step * step * seen * share
    return centre + step * share, spread, seen + count


@triton.jit
def load_matrix(matrix, channel, tap, C: tl.constexpr, T: tl.constexpr):
    """Load rows of a matrix (C, T), padded with zeros."""
    inside = (channel < C)[:, None] & (tap < T)[None, :]
    return tl.load(matrix + channel[:, None] * T + tap[None, :], mask=inside, other=0.0)


@triton.jit
def _merge_kernel(
    means, spreads, counts, mean, variance, R, G,
    C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """Compute the mean and variance of all rows from those of G programs."""
    channel, row = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, N)
    mask = (row < G)[:, None] & (channel < C)[None, :]
    offsets = row[:, None] * C + channel[None, :]
    count = tl.load(counts + row, mask=row < G, other=0.0)[:, None]
    centres = tl.load(means + offsets, mask=mask, other=0.0)
    first = tl.load(means + channel, mask=channel < C, other=0.0)
    centre = first + tl.sum((centres - first[None, :]) * count, 0) / R
    deviations = centres - centre[None, :]
    spread = tl.sum(tl.load(spreads + offsets, mask=mask, other=0.0) + deviations * deviations * count, 0)
    tl.store(mean + channel, centre, mask=channel < C)
    tl.store(variance + channel, spread / R, mask=channel < C)


@triton.jit
def _gradients_kernel(
    sums, matrix, weight, bias, mean, variance, grad_matrix, grad_weight, grad_bias, R, eps,
    C: tl.constexpr, T: tl.constexpr, K: tl.constexpr, ONE: tl.constexpr, WIDTH: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """Compute the gradients from A and, below it, P; column ONE has sum g and, below it, sum x."""
    channel, tap = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    valid = (channel < C)[:, None]
    scale, _, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    scale, inverse, centre = tl.trans(scale), tl.trans(inverse), tl.trans(centre)  # (CH, 1)
    taps = load_matrix(matrix, channel, tap, C, T).to(tl.float32)
    cross = tl.load(sums + channel[:, None] * WIDTH + tap[None, :], mask=valid, other=0.0)
    grad = tl.load(sums + channel[:, None] * WIDTH + ONE, mask=valid, other=0.0)
    with_normal = (tl.sum(taps * cross, 1)[:, None] - centre * grad) * inverse
    inputs = tl.load(sums + (C + tap) * WIDTH + ONE)[None, :]
    products = tl.load(sums + (C + tap[:, None]) * WIDTH + tap[None, :])
    # Three products of ten bits each: as exact as float32, much faster, and the taps have fewer digits anyway
    normal = (tl.dot(taps, products, input_precision="tf32x3") - centre * inputs) * inverse
    gradient = scale * (cross - grad / R * inputs - with_normal / R * normal)
    target = grad_matrix + channel[:, None] * T + tap[None, :]
    tl.store(target, gradient.to(grad_matrix.dtype.element_ty), mask=valid & (tap < T)[None, :])
    first = tl.arange(0, 1)[None, :]
    tl.store(grad_weight + channel[:, None] + first, with_normal, mask=valid)
    tl.store(grad_bias + channel[:, None] + first, grad, mask=valid)


def merge_statistics(means: Tensor, spreads: Tensor, counts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Merge the statistics of programs into each channel's mean and biased variance over all rows.

    Args:
        means: (G, C).
        spreads: summed squared distances from the means, (G, C).
        counts: rows of each program, (G,).
        rows: R.

    Returns:
        Both (C,).
    """
    programs, channels = means.shape
    mean, variance = (means.new_empty(channels) for _ in range(2))
    _merge_kernel[(triton.cdiv(channels, 16),)](
        means, spreads, counts, mean, variance, rows, programs, C=channels, N=triton.next_power_of_2(programs), CH=16
    )
    return mean, variance


def gradients_from_sums(
    parts: Tensor, one: int, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, rows: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of the map's matrix and of the norm's weight and bias.

    Args:
        parts: of each program A and below it P, float32 (G, C + K, columns).
        one: the column that has sum g and below it sum x.
        matrix: (C, T).
        weight: of the norm, (C,), as are bias, mean and variance.
        bias: (C,).
        mean: (C,).
        variance: (C,).
        rows: R.
        eps: added to the variance.

    Returns:
        Those by matrix (C, T), weight and bias.
    """
    outs, taps = matrix.shape
    outputs = (torch.empty_like(matrix), torch.empty_like(weight), torch.empty_like(bias))
    sizes = {"C": outs, "T": taps, "K": parts.shape[1] - outs, "ONE": one, "WIDTH": parts.shape[2]}
    _gradients_kernel[(triton.cdiv(outs, 16),)](
        sum_parts(parts, torch.float32), matrix, weight, bias, mean, variance, *outputs, rows, eps, **sizes, CH=16,
        num_warps=8 if sizes["K"] > 64 else 4,
    )  # fmt: skip
    return outputs
