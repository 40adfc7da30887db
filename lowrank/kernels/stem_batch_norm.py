"""A network's first convolution, of images, with its batch norm and ReLU as one operation that never writes the map.

Images have few channels, the map many: working a value of the map out again from its patch moves a twentieth of the
bytes that reading it back would. Forward: one pass for the statistics, one for the result. Backward: one pass over the
gradient, since images have none; it sums what the others come from (lowrank.kernels.fused_common), whose inputs x of a
position are here a patch followed by a one, so that A and P have sum g and sum x in the column of the one.

Images get an edge of zeros first, so that no tap of a patch needs to be asked whether it is inside.

Letters: R positions of all images, D channels of an image, C of the map, H x W positions of an image, N positions of a
tile, K the power of 2 that holds a patch's 9 D taps and the one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.batch_norm import last, like_result, scale_and_shift
from lowrank.kernels.fused_common import LaunchConfig, cut, gradients, merged, taken_in

TAPS = 32  # the power of 2 that holds the 9 D taps of a patch and the one
FEWEST, MOST = 16, 128  # channels of the map, a power of 2
# Every program has all channels
STATISTICS = RESULT = LaunchConfig(rows=64, part=0, warps=4, stages=1, programs_per_processor=4)
BACKWARD = LaunchConfig(rows=64, part=0, warps=4, stages=1, programs_per_processor=3)


@triton.jit
def _patches(x, row, R, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr):
    """The patches around N positions, (K, N): taps by row, column and channel, then a one; zeros for no position.

    The rest repeats the first tap: `_weights` has zeros there, and nobody reads what is summed of it.
    """
    tap = tl.arange(0, K)
    offset = tl.where(tap < 9 * D, ((tap // (3 * D)) * (W + 2) + (tap // D) % 3) * D + tap % D, 0)
    place = ((row // (H * W)) * ((H + 2) * (W + 2)) + ((row // W) % H) * (W + 2) + row % W) * D
    inside = (row < R)[None, :]
    values = tl.load(x + place[None, :] + offset[:, None], mask=inside, other=0.0)
    return tl.where((tap == 9 * D)[:, None] & inside, 1.0, values).to(values.dtype)


@triton.jit
def _weights(matrix, channel, D: tl.constexpr, K: tl.constexpr):
    """The kernel of each channel as a row of its matrix, (C, K), filled up with zeros."""
    tap = tl.arange(0, K)[None, :]
    return tl.load(matrix + channel[:, None] * (9 * D) + tap, mask=tap < 9 * D, other=0.0)


@triton.jit
def _statistics_kernel(
    x, matrix, means, spreads, counts, R,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    TURNS: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, C)
    weight = _weights(matrix, channel, D, K)
    centre, spread = tl.zeros([C], dtype=tl.float32), tl.zeros([C], dtype=tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        first = (turn * tl.num_programs(1) + tl.program_id(1)) * N
        row = first + tl.arange(0, N)
        columns = _patches(x, row, R, D, H, W, K)
        values = tl.dot(weight, columns, input_precision="ieee").to(weight.dtype).to(tl.float32)
        count = tl.minimum(tl.maximum(R - first, 0), N).to(tl.float32)
        centre, spread, seen = taken_in(values, (row < R)[None, :], count, centre, spread, seen)
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
    taps = _weights(matrix, channel, D, K)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        columns = _patches(x, row, R, D, H, W, K)
        values = tl.dot(taps, columns, input_precision="ieee").to(taps.dtype).to(tl.float32)
        y = values * tl.trans(scale) + tl.trans(shift)
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # what is no number stays none
        tl.store(out + row[None, :] * C + channel[:, None], y.to(out.dtype.element_ty), mask=(row < R)[None, :])


@triton.jit
def _back_kernel(
    gradient, x, matrix, weight, bias, mean, variance, parts, R, eps,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    TURNS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Each program's A, (C, K), and below it its P, (K, K)."""
    channel, tap = tl.arange(0, C), tl.arange(0, K)
    scale, shift, _, _ = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    taps = _weights(matrix, channel, D, K)
    met, products = tl.zeros([C, K], dtype=tl.float32), tl.zeros([K, K], dtype=tl.float32)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        own = row[None, :] * C + channel[:, None]
        came = tl.load(gradient + own, mask=(row < R)[None, :], other=0.0)
        columns = _patches(x, row, R, D, H, W, K)
        if RELU:
            values = tl.dot(taps, columns, input_precision="ieee").to(taps.dtype).to(tl.float32)
            came = tl.where(values * tl.trans(scale) + tl.trans(shift) > 0, came, 0.0)
        rows = tl.trans(columns)
        met = tl.dot(came.to(taps.dtype), rows, met, input_precision="ieee")
        products = tl.dot(columns, rows, products, input_precision="ieee")
    target = parts + tl.program_id(1) * ((C + K) * K)
    tl.store(target + channel[:, None] * K + tap[None, :], met)
    tl.store(target + (C + tap[:, None]) * K + tap[None, :], products)


def fits(channels: int, out_channels: int) -> bool:
    """Whether the kernels are made for a first convolution of this shape."""
    return 9 * channels < TAPS and FEWEST <= out_channels <= MOST and out_channels & (out_channels - 1) == 0


def _sizes(edged: Tensor, matrix: Tensor) -> tuple[dict[str, int], int]:
    """Constants of all kernels, and the positions."""
    images, height, width, channels = edged.shape
    height, width = height - 2, width - 2
    return {"D": channels, "C": len(matrix), "H": height, "W": width, "K": TAPS}, images * height * width


def _edged(x: Tensor, matrix: Tensor) -> Tensor:
    """Room for images with an edge of zeros, (B, H + 2, W + 2, D), in the format of the result."""
    images, channels, height, width = x.shape
    return torch.zeros((images, height + 2, width + 2, channels), dtype=matrix.dtype, device=x.device)


@torch.library.custom_op("lowrank::stem_norm", mutates_args=())
def stem_norm(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`norm` of a 3 x 3 convolution of images, with stride and padding 1: its result, mean and variance.

    Last comes what is kept for the way back and has no gradient, the images with an edge.

    Args:
        x: (B, D, H, W), images, which have no gradient; at most three channels, of any float format.
        matrix: (C, 9 D), each channel's kernel by row, column and channel, in the format of the result.
        weight: (C), as all that follows is `norm`'s.
    """
    edged, matrix = _edged(x, matrix), matrix.contiguous()
    edged[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    sizes, rows = _sizes(edged, matrix)
    constants, grid = cut(rows, 1, STATISTICS)
    means, spreads = (torch.empty((grid[1], len(matrix)), device=x.device) for _ in range(2))
    counts = torch.empty(grid[1], device=x.device)
    _statistics_kernel[grid](edged, matrix, means, spreads, counts, rows, **sizes, **constants)
    mean, variance = merged(means, spreads, counts, rows)
    out = like_result(x, channels=len(matrix), dtype=matrix.dtype)
    constants, grid = cut(rows, 1, RESULT)
    _result_kernel[grid](edged, matrix, weight, bias, mean, variance, out, rows, eps, **sizes, **constants, RELU=relu)
    return out, mean, variance, edged


@stem_norm.register_fake
def _(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(len(matrix), device=x.device) for _ in range(2))
    return like_result(x, channels=len(matrix), dtype=matrix.dtype), mean, variance, _edged(x, matrix)


@torch.library.custom_op("lowrank::stem_norm_backward", mutates_args=())
def stem_norm_backward(
    gradient: Tensor, edged: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `stem_norm`'s matrix, weight and bias."""
    gradient, matrix = last(gradient), matrix.contiguous()
    sizes, rows = _sizes(edged, matrix)
    constants, grid = cut(rows, 1, BACKWARD)
    outs = sizes["C"]
    norms = (matrix, weight, bias, mean, variance)
    parts = torch.empty((grid[1], outs + TAPS, TAPS), device=edged.device)
    _back_kernel[grid](gradient, edged, *norms, parts, rows, eps, **sizes, **constants, RELU=relu)
    return gradients(parts, 9 * sizes["D"], *norms, rows, eps)


@stem_norm_backward.register_fake
def _(
    gradient: Tensor, edged: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    to_matrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    return to_matrix, torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, matrix, weight, bias, ctx.eps, ctx.relu = inputs
    _, mean, variance, edged = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(edged, matrix, weight, bias, mean, variance)


def _gradients(ctx: Any, gradient: Tensor, *of_the_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    """The statistics are read for running ones alone, so nothing comes back through them."""
    return None, *stem_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu), None, None


stem_norm.register_autograd(_gradients, setup_context=_keep)
