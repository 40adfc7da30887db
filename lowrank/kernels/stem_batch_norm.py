"""A network's first convolution, its batch norm and ReLU as one operation that never writes the convolution's result.

Images have few channels, the result many: computing a value again from its patch moves a twentieth of the bytes that
reading it back would. Forward: one pass for the statistics, one for the result. Backward: one pass over the gradient,
since images have none. It sums what the other gradients are made of (`lowrank.kernels.fused_common`); the inputs x of a
position are here a patch followed by a one, so that A and P have sum g and sum x in the column of the one.

Images are padded with zeros first, so that no tap of a patch must be checked for being inside.

Letters: B images, R positions of all images, D channels of an image, C of the result, H x W positions of an image, N
positions of a tile, TURNS tiles of a program, K the power of 2 that holds a patch's 9 D taps and the one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.batch_norm import empty_result, to_channels_last
from lowrank.kernels.fused_common import (
    LaunchConfig,
    gradients_from_sums,
    launch_grid,
    merge_statistics,
    update_statistics,
)
from lowrank.kernels.norm_formulas import scale_and_shift

TAPS = 32  # the power of 2 that holds the 9 D taps of a patch and the one
MIN_OUT_CHANNELS, MAX_OUT_CHANNELS = 16, 128  # of the result, a power of 2
# Every program has all channels
STATISTICS = RESULT = LaunchConfig(rows=64, block_channels=0, warps=4, stages=1, programs_per_processor=4)
BACKWARD = LaunchConfig(rows=64, block_channels=0, warps=4, stages=1, programs_per_processor=3)


@triton.jit
def _patches(x, row, R, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr):
    """Load the patches around N positions, (K, N): taps by row, column and channel, then a one; zeros for no position.

    What follows up to K repeats the first tap: `_load_kernels` has zeros there, and nothing reads its sums.
    """
    tap = tl.arange(0, K)
    offset = tl.where(tap < 9 * D, ((tap // (3 * D)) * (W + 2) + (tap // D) % 3) * D + tap % D, 0)
    corner = ((row // (H * W)) * ((H + 2) * (W + 2)) + ((row // W) % H) * (W + 2) + row % W) * D
    inside = (row < R)[None, :]
    values = tl.load(x + corner[None, :] + offset[:, None], mask=inside, other=0.0)
    return tl.where((tap == 9 * D)[:, None] & inside, 1.0, values).to(values.dtype)


@triton.jit
def _load_kernels(matrix, channel, D: tl.constexpr, K: tl.constexpr):
    """Load the kernel of each channel as a row of a matrix, (C, K), padded with zeros."""
    tap = tl.arange(0, K)[None, :]
    return tl.load(matrix + channel[:, None] * (9 * D) + tap, mask=tap < 9 * D, other=0.0)


@triton.jit
def _statistics_kernel(
    x, matrix, means, spreads, counts, R,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    TURNS: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, C)
    weight = _load_kernels(matrix, channel, D, K)
    centre, spread = tl.zeros([C], dtype=tl.float32), tl.zeros([C], dtype=tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        first = (turn * tl.num_programs(1) + tl.program_id(1)) * N
        row = first + tl.arange(0, N)
        columns = _patches(x, row, R, D, H, W, K)
        values = tl.dot(weight, columns, input_precision="ieee").to(weight.dtype).to(tl.float32)
        count = tl.minimum(tl.maximum(R - first, 0), N).to(tl.float32)
        centre, spread, seen = update_statistics(values, (row < R)[None, :], count, centre, spread, seen)
    target = tl.program_id(1) * C + channel
    tl.store(means + target, centre)
    tl.store(spreads + target, spread)
    tl.store(counts + tl.program_id(1), seen)


@triton.jit
def _result_kernel(
    x, matrix, weight, bias, mean, variance, out, R, eps,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    TURNS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, C)
    scale, shift, _, _ = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    taps = _load_kernels(matrix, channel, D, K)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        columns = _patches(x, row, R, D, H, W, K)
        values = tl.dot(taps, columns, input_precision="ieee").to(taps.dtype).to(tl.float32)
        y = values * tl.trans(scale) + tl.trans(shift)
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
        tl.store(out + row[None, :] * C + channel[:, None], y.to(out.dtype.element_ty), mask=(row < R)[None, :])


@triton.jit
def _backward_kernel(
    gradient, x, matrix, weight, bias, mean, variance, parts, R, eps,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    TURNS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Sum each program's A, (C, K), and below it its P, (K, K)."""
    channel, tap = tl.arange(0, C), tl.arange(0, K)
    scale, shift, _, _ = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    taps = _load_kernels(matrix, channel, D, K)
    cross, products = tl.zeros([C, K], dtype=tl.float32), tl.zeros([K, K], dtype=tl.float32)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        offsets = row[None, :] * C + channel[:, None]
        grad = tl.load(gradient + offsets, mask=(row < R)[None, :], other=0.0)
        columns = _patches(x, row, R, D, H, W, K)
        if RELU:
            values = tl.dot(taps, columns, input_precision="ieee").to(taps.dtype).to(tl.float32)
            grad = tl.where(values * tl.trans(scale) + tl.trans(shift) > 0, grad, 0.0)
        rows = tl.trans(columns)
        cross = tl.dot(grad.to(taps.dtype), rows, cross, input_precision="ieee")
        products = tl.dot(columns, rows, products, input_precision="ieee")
    target = parts + tl.program_id(1) * ((C + K) * K)
    tl.store(target + channel[:, None] * K + tap[None, :], cross)
    tl.store(target + (C + tap[:, None]) * K + tap[None, :], products)


def supports(channels: int, out_channels: int) -> bool:
    """Return whether the kernels are made for a first convolution of this shape.

    Args:
        channels: D.
        out_channels: C.
    """
    return (
        9 * channels < TAPS
        and MIN_OUT_CHANNELS <= out_channels <= MAX_OUT_CHANNELS
        and out_channels & (out_channels - 1) == 0
    )


def _sizes(padded: Tensor, matrix: Tensor) -> tuple[dict[str, int], int]:
    """Return the constants of all kernels, and R."""
    images, height, width, channels = padded.shape
    height, width = height - 2, width - 2
    return {"D": channels, "C": len(matrix), "H": height, "W": width, "K": TAPS}, images * height * width


def _empty_padded(x: Tensor, matrix: Tensor) -> Tensor:
    """Allocate images with an edge of zeros, (B, H + 2, W + 2, D), in the dtype of the result."""
    images, channels, height, width = x.shape
    return torch.zeros((images, height + 2, width + 2, channels), dtype=matrix.dtype, device=x.device)


@torch.library.custom_op("lowrank::stem_norm", mutates_args=())
def stem_norm(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve images by 3 x 3 kernels, with stride and padding 1, then apply `lowrank.kernels.batch_norm.norm`.

    Args:
        x: images (B, D, H, W), without a gradient; at most three channels, of any float dtype.
        matrix: (C, 9 D), each channel's kernel by row, column and channel, in the dtype of the result.
        weight: (C,), float32, of the norm, as are the arguments that follow.
        bias: (C,), float32.
        eps: added to the variance.
        relu: whether negative values become zero.

    Returns:
        The result, mean and variance of the norm. Then, for the backward pass, the padded images, which have no
        gradient.
    """
    padded, matrix = _empty_padded(x, matrix), matrix.contiguous()
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    sizes, rows = _sizes(padded, matrix)
    constants, grid = launch_grid(rows, 1, STATISTICS)
    means, spreads = (torch.empty((grid[1], len(matrix)), device=x.device) for _ in range(2))
    counts = torch.empty(grid[1], device=x.device)
    _statistics_kernel[grid](padded, matrix, means, spreads, counts, rows, **sizes, **constants)
    mean, variance = merge_statistics(means, spreads, counts, rows)
    out = empty_result(x, channels=len(matrix), dtype=matrix.dtype)
    constants, grid = launch_grid(rows, 1, RESULT)
    _result_kernel[grid](padded, matrix, weight, bias, mean, variance, out, rows, eps, **sizes, **constants, RELU=relu)
    return out, mean, variance, padded


@stem_norm.register_fake
def _(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(len(matrix), device=x.device) for _ in range(2))
    return empty_result(x, channels=len(matrix), dtype=matrix.dtype), mean, variance, _empty_padded(x, matrix)


@torch.library.custom_op("lowrank::stem_norm_backward", mutates_args=())
def stem_norm_backward(
    gradient: Tensor, padded: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of `stem_norm`.

    Args:
        gradient: of the result.
        padded: the padded images, as `stem_norm` returned them.
        matrix: as `stem_norm` took it, as are weight, bias, eps and relu.
        weight: (C,).
        bias: (C,).
        mean: as `stem_norm` returned it, (C,).
        variance: as `stem_norm` returned it, (C,).
        eps: added to the variance.
        relu: whether there was a ReLU.

    Returns:
        Those by matrix, weight and bias.
    """
    gradient, matrix = to_channels_last(gradient), matrix.contiguous()
    sizes, rows = _sizes(padded, matrix)
    constants, grid = launch_grid(rows, 1, BACKWARD)
    outs = sizes["C"]
    norms = (matrix, weight, bias, mean, variance)
    parts = torch.empty((grid[1], outs + TAPS, TAPS), device=padded.device)
    _backward_kernel[grid](gradient, padded, *norms, parts, rows, eps, **sizes, **constants, RELU=relu)
    return gradients_from_sums(parts, 9 * sizes["D"], *norms, rows, eps)


@stem_norm_backward.register_fake
def _(
    gradient: Tensor, padded: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_matrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    return grad_matrix, torch.empty_like(weight), torch.empty_like(bias)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, matrix, weight, bias, ctx.eps, ctx.relu = inputs
    _, mean, variance, padded = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(padded, matrix, weight, bias, mean, variance)


def _backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs; the statistics only feed the running ones, so they pass none back."""
    return None, *stem_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu), None, None


stem_norm.register_autograd(_backward, setup_context=_save_for_backward)
