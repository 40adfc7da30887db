"""A pointwise map and the batch norm behind it as one operation that never writes the map, for channels-last images.

A value of the map is computed again from its position's inputs wherever it is needed: these have fewer channels or as
many, and tensor cores are idle while memory is not. Forward: one pass for the statistics, one for the result. The
second stores one byte for each value of the result, its route: where its gradient goes, which is the one of four
positions that a pooling picked, and whether a ReLU let it pass. Backward: one pass sums what the gradients of matrix,
weight and bias are made of (`lowrank.kernels.fused_common`), and one writes the input's. There the map is not needed,
since the norm's gradient is linear in it:

    dy = scale g - slope y - level,  y = W x,  so  dx = W' scale g - (W' slope W) x - W' level

Letters: B images, H x W positions, R rows (positions of the result's images), D in-channels, C out-channels, N rows of
a tile, TURNS tiles of a program, CH out-channels of a program, K the power of 2 that holds D. Where the result is
pooled, a row stands for four positions of the input, and W is the width of the result's images.
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
    load_matrix,
    merge_statistics,
    update_statistics,
)
from lowrank.kernels.norm_formulas import pooled_origin, scale_and_shift, slope_and_level

# Of inputs and outputs: a program has no shared memory for more
MAX_CHANNELS, MAX_OUT_CHANNELS = 128, 256
# Channels are FEW_CHANNELS or a multiple of MULTIPLE. Multiples that are no powers of 2 were timed on an H200 on
# 2026-11-30, in the shapes of ResNet-9 at 0.75 of its width, batch 512, bfloat16: 692.6 us joined, 806.3 apart. One of
# four shapes was slower joined, 172.8 instead of 168.6 us: 96 to 192 channels at 16 x 16, pooled
FEW_CHANNELS, MULTIPLE = 8, 16
MAX_PADDING = 4 / 3  # channels of all programs over those that there are: more programs read the inputs again instead
ONES = 16  # columns of ones, which a product needs to sum rows
BLOCKED = tl.constexpr(4)  # the route where a ReLU let nothing pass; 0 to 3: one of four positions


@triton.jit
def _inputs(x, position, inside, k, D: tl.constexpr):
    """Load the inputs of positions, (K, positions); zeros where there is none."""
    return tl.load(x + position[None, :] * D + k[:, None], mask=inside[None, :] & (k < D)[:, None], other=0.0)


@triton.jit
def _positions(row, four, W: tl.constexpr, POOL: tl.constexpr):
    """Return the positions of the input that rows stand for; `four` says which of their four, where it is pooled."""
    return pooled_origin(row, W) + (four // 2) * (2 * W) + four % 2 if POOL else row


@triton.jit
def _values(x, position, inside, taps, k, D: tl.constexpr):
    """Compute the map's values (CH, positions), in float32, rounded as if they were written."""
    product = tl.dot(taps, _inputs(x, position, inside, k, D), input_precision="ieee")
    return product.to(taps.dtype).to(tl.float32)


@triton.jit
def _statistics_kernel(
    x, matrix, means, spreads, counts, R,
    D: tl.constexpr, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of the map; rows are those of the input.

    Tiles have channels first, so that few threads share a channel's sum.
    """
    channel, k = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    taps = load_matrix(matrix, channel, k, C, D)
    centre, spread = tl.zeros([CH], dtype=tl.float32), tl.zeros([CH], dtype=tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        first = (turn * tl.num_programs(1) + tl.program_id(1)) * N
        row = first + tl.arange(0, N)
        values = _values(x, row, row < R, taps, k, D)
        count = tl.minimum(tl.maximum(R - first, 0), N).to(tl.float32)
        centre, spread, seen = update_statistics(values, (row < R)[None, :], count, centre, spread, seen)
    target = tl.program_id(1) * C + channel
    tl.store(means + target, centre, mask=channel < C)
    tl.store(spreads + target, spread, mask=channel < C)
    tl.store(counts + tl.program_id(1), seen)


@triton.jit
def _result_kernel(
    x, matrix, weight, bias, mean, variance, residual, out, routes, R, eps,
    D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr,
    TURNS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    channel, k = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    scale, shift, _, _ = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    scale, shift = tl.trans(scale), tl.trans(shift)
    taps = load_matrix(matrix, channel, k, C, D)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        inside = row < R
        offsets, mask = row[None, :] * C + channel[:, None], inside[None, :] & (channel < C)[:, None]
        which = tl.zeros([CH, N], dtype=tl.int8)
        y = _values(x, _positions(row, 0, W, POOL), inside, taps, k, D) * scale + shift
        for four in tl.static_range(1, 4 if POOL else 1):
            other = _values(x, _positions(row, four, W, POOL), inside, taps, k, D) * scale + shift
            which = tl.where(other > y, four, which).to(tl.int8)
            y = tl.where(other > y, other, y)
        if RELU:
            which = tl.where(y > 0, which, BLOCKED).to(tl.int8)
            y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
        if RELU or POOL:
            tl.store(routes + offsets, which, mask=mask)
        if ADD:
            y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _load_gradient(gradient, routes, row, R, channel, C: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr):
    """Load the gradient that a ReLU let pass, (N, CH), and its routes."""
    offsets, mask = row[:, None] * C + channel[None, :], (row < R)[:, None] & (channel < C)[None, :]
    grad = tl.load(gradient + offsets, mask=mask, other=0.0)
    which = grad
    if RELU or POOL:
        which = tl.load(routes + offsets, mask=mask, other=BLOCKED)
        grad = tl.where(which < BLOCKED, grad, 0.0)
    return grad, which


@triton.jit
def _sums_kernel(
    gradient, routes, x, parts, R,
    D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr,
    PART: tl.constexpr, ONES: tl.constexpr, TURNS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """Sum each program's rows of A, (CH, K), followed by sum g, and PART columns of P, followed by sum x."""
    channel, k = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    part, one = tl.program_id(0) * PART + tl.arange(0, PART), tl.arange(0, ONES)
    cross, sums = tl.zeros([K, CH], dtype=tl.float32), tl.zeros([N, CH], dtype=tl.float32)
    products, inputs = tl.zeros([K, PART], dtype=tl.float32), tl.zeros([K, ONES], dtype=tl.float32)
    ones = tl.full([N, ONES], 1.0, dtype=x.dtype.element_ty)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        grad, which = _load_gradient(gradient, routes, row, R, channel, C, RELU, POOL)
        sums += grad.to(tl.float32)
        for four in tl.static_range(4 if POOL else 1):
            position = _positions(row, four, W, POOL)
            columns = _inputs(x, position, row < R, k, D)
            some = columns if PART == K else _inputs(x, position, row < R, part, D)
            routed = tl.where(which == four, grad, 0.0) if POOL else grad
            cross = tl.dot(columns, routed.to(ones.dtype), cross, input_precision="ieee")
            products = tl.dot(columns, tl.trans(some), products, input_precision="ieee")
            inputs = tl.dot(columns, ones, inputs, input_precision="ieee")
    start = parts + tl.program_id(1) * ((C + K) * (K + ONES))
    target, valid = start + channel[None, :] * (K + ONES), (channel < C)[None, :]
    tl.store(target + k[:, None], cross, mask=valid)
    tl.store(target + K + one[:, None], tl.sum(sums, 0)[None, :] + tl.zeros([ONES, CH], dtype=tl.float32), mask=valid)
    target = start + (C + k)[:, None] * (K + ONES)
    tl.store(target + part[None, :], products, mask=(part < K)[None, :])
    tl.store(target + K + one[None, :], inputs, mask=(one < ONES)[None, :] & (tl.program_id(0) == 0))


@triton.jit
def _matrices_kernel(
    matrix, weight, bias, mean, variance, grad_weight, grad_bias, scale_matrix, slope_matrix, level_vector, count, eps,
    D: tl.constexpr, C: tl.constexpr, K: tl.constexpr, CH: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Compute W' scale, - W' slope W and W' level for the input's gradient; PART rows a program."""
    channel, k, part = tl.arange(0, CH), tl.arange(0, K), tl.program_id(0) * PART + tl.arange(0, PART)
    scale, _, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, channel < C, eps)
    of_weight = tl.load(grad_weight + channel, mask=channel < C, other=0.0)
    of_bias = tl.load(grad_bias + channel, mask=channel < C, other=0.0)
    slope, level = slope_and_level(scale, inverse, centre, of_weight, of_bias, count)
    taps, part_taps = load_matrix(matrix, channel, k, C, D), load_matrix(matrix, channel, part, C, D)
    scaled = (part_taps * tl.trans(scale)).to(part_taps.dtype)
    sloped = (part_taps * tl.trans(-slope)).to(part_taps.dtype)
    tl.store(scale_matrix + part[None, :] * C + channel[:, None], scaled, mask=(channel < C)[:, None])
    mixed = tl.dot(tl.trans(sloped), taps, input_precision="ieee")
    tl.store(slope_matrix + part[:, None] * K + k[None, :], mixed.to(part_taps.dtype))
    tl.store(level_vector + part, tl.sum(part_taps * tl.trans(level), 0))


@triton.jit
def _input_kernel(
    gradient, routes, x, scale_matrix, slope_matrix, level_vector, grad_x, R,
    D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr,
    TURNS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """Compute the input's gradient. Every program has all channels."""
    channel, k = tl.arange(0, CH), tl.arange(0, K)
    scaled = tl.load(scale_matrix + k[:, None] * C + channel[None, :], mask=(channel < C)[None, :], other=0.0)
    mixed, level = tl.load(slope_matrix + k[:, None] * K + k[None, :]), tl.load(level_vector + k)[:, None]
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        grad, which = _load_gradient(gradient, routes, row, R, channel, C, RELU, POOL)
        for four in tl.static_range(4 if POOL else 1):
            position = _positions(row, four, W, POOL)
            routed = (tl.where(which == four, grad, 0.0) if POOL else grad).to(scaled.dtype)
            values = tl.dot(mixed, _inputs(x, position, row < R, k, D), input_precision="ieee")
            values = tl.dot(scaled, tl.trans(routed), values, input_precision="ieee") - level
            target, mask = grad_x + position[None, :] * D + k[:, None], (row < R)[None, :] & (k < D)[:, None]
            tl.store(target, values.to(grad_x.dtype.element_ty), mask=mask)


def supports(channels: int, out_channels: int) -> bool:
    """Return whether the kernels are made for maps of this shape.

    Args:
        channels: D.
        out_channels: C.
    """
    even = all(count == FEW_CHANNELS or count % MULTIPLE == 0 for count in (channels, out_channels))
    return even and channels <= MAX_CHANNELS and out_channels <= MAX_OUT_CHANNELS


def block_channels(outs: int) -> int:
    """Return how many out-channels a program works on: the largest power of 2 that leaves few of them idle.

    Args:
        outs: C.

    Returns:
        32, 64 or 128, or the power of 2 that holds fewer.
    """
    sizes = [size for size in (128, 64, 32) if triton.cdiv(outs, size) * size <= MAX_PADDING * outs]
    return sizes[0] if sizes else int(triton.next_power_of_2(outs))


def statistics_config(channels: int, outs: int) -> LaunchConfig:
    """Return what is fastest on an H100 for `_statistics_kernel`."""
    return LaunchConfig(128 if channels <= 64 else 64, block_channels(outs), 4, 3, 2)


def result_config(channels: int, outs: int, pool: bool) -> LaunchConfig:
    """Return what is fastest on an H100 for `_result_kernel`."""
    return LaunchConfig(32 if pool else 64, block_channels(outs), 4, 2 if pool and channels > 64 else 3, 2)


def _backward_rows(channels: int, pool: bool) -> int:
    """Return the rows of a backward tile.

    Fewer for less than 64 channels, of which Hopper's products take 64: there are no registers for more rows.
    """
    return (32 if pool else 64) // (1 if channels >= 64 else 2)


def sums_config(channels: int, outs: int, pool: bool) -> LaunchConfig:
    """Return what is fastest on an H100 for `_sums_kernel`.

    With more warps than the channels fill, Triton would move the sums between threads for every tile.
    """
    few = channels <= 64
    return LaunchConfig(_backward_rows(channels, pool), block_channels(outs), 4 if few else 8, 3, 2 if few else 1)


def input_config(channels: int, outs: int, pool: bool) -> LaunchConfig:
    """Return what is fastest on an H100 for `_input_kernel`."""
    few = channels <= 64
    return LaunchConfig(_backward_rows(channels, pool), 0, 4 if few else 8, 2 if outs > 128 else 3, 2 if few else 1)


def _sizes(channels: int, outs: int, config: LaunchConfig) -> dict[str, int]:
    """Return the constants of all kernels."""
    padded = triton.next_power_of_2(channels), triton.next_power_of_2(outs)
    return {"D": channels, "C": outs, "K": max(16, padded[0]), "CH": max(16, config.block_channels or padded[1])}


def product_statistics(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and biased variance of each channel of x's pointwise map.

    Args:
        x: (B, D, H, W), channels-last.
        matrix: (C, D), contiguous, in x's dtype.

    Returns:
        Both float32 (C,).
    """
    (outs, channels), rows = matrix.shape, x.numel() // x.shape[1]
    config = statistics_config(channels, outs)
    constants, grid = launch_grid(rows, triton.cdiv(outs, config.block_channels), config)
    means, spreads = (torch.empty((grid[1], outs), device=x.device) for _ in range(2))
    counts = torch.empty(grid[1], device=x.device)
    _statistics_kernel[grid](x, matrix, means, spreads, counts, rows, **_sizes(channels, outs, config), **constants)
    return merge_statistics(means, spreads, counts, rows)


def _empty_results(x: Tensor, outs: int, relu: bool, pool: bool) -> tuple[Tensor, Tensor]:
    """Allocate the result and its routes; these are empty where every gradient has the same route."""
    if relu or pool:
        routes = empty_result(x, pool, channels=outs, dtype=torch.int8)
    else:
        routes = x.new_empty(0, dtype=torch.int8)
    return empty_result(x, pool, channels=outs), routes


@torch.library.custom_op("lowrank::pointwise_norm", mutates_args=())
def pointwise_norm(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply a pointwise map, then `lowrank.kernels.batch_norm.norm`.

    Args:
        x: (B, D, H, W), the map's input.
        matrix: (C, D), in x's dtype.
        weight: (C,), float32, of the norm, as are the arguments that follow.
        bias: (C,), float32.
        residual: added to the result, of its shape; None for none.
        eps: added to the variance.
        relu: whether negative values become zero.
        pool: whether only the largest of each 2 x 2 positions stays.

    Returns:
        The result, mean and variance of the norm. Then, for the backward pass, the route of each of the result's
        values, int8: 0 to 3 for one of four positions (0 without pooling), 4 for none; empty where there is neither
        ReLU nor pooling. Routes have no gradient.
    """
    x, matrix = to_channels_last(x), matrix.contiguous()
    (outs, channels), (out, routes) = matrix.shape, _empty_results(x, len(matrix), relu, pool)
    mean, variance = product_statistics(x, matrix)
    config, rows = result_config(channels, outs, pool), out.numel() // outs
    constants, grid = launch_grid(rows, triton.cdiv(outs, config.block_channels), config)
    _result_kernel[grid](
        x, matrix, weight, bias, mean, variance, out if residual is None else to_channels_last(residual), out, routes,
        rows, eps, **_sizes(channels, outs, config), W=out.shape[3], RELU=relu, POOL=pool, ADD=residual is not None,
        **constants,
    )  # fmt: skip
    return out, mean, variance, routes


@pointwise_norm.register_fake
def _(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(len(matrix), device=x.device) for _ in range(2))
    out, routes = _empty_results(x, len(matrix), relu, pool)
    return out, mean, variance, routes


@torch.library.custom_op("lowrank::pointwise_norm_backward", mutates_args=())
def pointwise_norm_backward(
    gradient: Tensor, x: Tensor, matrix: Tensor, routes: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
    variance: Tensor, eps: float, relu: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of `pointwise_norm`.

    Args:
        gradient: of the result.
        x: as `pointwise_norm` took it, as are matrix, weight, bias, eps, relu and pool.
        matrix: (C, D).
        routes: as `pointwise_norm` returned them.
        weight: (C,).
        bias: (C,).
        mean: as `pointwise_norm` returned it, (C,).
        variance: as `pointwise_norm` returned it, (C,).
        eps: added to the variance.
        relu: whether there was a ReLU.
        pool: whether there was a pooling.

    Returns:
        Those by x, matrix, weight and bias.
    """
    gradient, x, matrix = to_channels_last(gradient), to_channels_last(x), matrix.contiguous()
    (outs, channels), count = matrix.shape, x.numel() // x.shape[1]
    rows, switches = gradient.numel() // outs, {"W": gradient.shape[3], "RELU": relu, "POOL": pool}
    config = sums_config(channels, outs, pool)
    blocks, sizes = triton.cdiv(outs, config.block_channels), _sizes(channels, outs, config)
    constants, grid = launch_grid(rows, blocks, config)
    parts = torch.empty((grid[1], outs + sizes["K"], sizes["K"] + ONES), device=x.device)
    _sums_kernel[grid](
        gradient, routes, x, parts, rows, **sizes, **switches, ONES=ONES,
        PART=max(16, triton.next_power_of_2(triton.cdiv(sizes["K"], blocks))),
        **constants,
    )  # fmt: skip
    norms = (weight, bias, mean, variance)
    grad_matrix, grad_weight, grad_bias = gradients_from_sums(parts, sizes["K"], matrix, *norms, count, eps)
    config, grad_x = input_config(channels, outs, pool), torch.empty_like(x)
    sizes, (constants, grid) = _sizes(channels, outs, config), launch_grid(rows, 1, config)
    scale_matrix, slope_matrix = matrix.new_empty(sizes["K"], outs), matrix.new_empty(sizes["K"], sizes["K"])
    level_vector = torch.empty(sizes["K"], device=x.device)
    _matrices_kernel[(sizes["K"] // 16,)](
        matrix, *norms, grad_weight, grad_bias, scale_matrix, slope_matrix, level_vector, count, eps, **sizes, PART=16
    )
    _input_kernel[grid](
        gradient, routes, x, scale_matrix, slope_matrix, level_vector, grad_x, rows, **sizes, **switches, **constants
    )
    return grad_x, grad_matrix, grad_weight, grad_bias


@pointwise_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, matrix: Tensor, routes: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
    variance: Tensor, eps: float, relu: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_matrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    return empty_result(x), grad_matrix, torch.empty_like(weight), torch.empty_like(bias)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, matrix, weight, bias, residual, ctx.eps, ctx.relu, ctx.pool = inputs
    _, mean, variance, routes = output
    ctx.adds = residual is not None
    ctx.set_materialize_grads(False)  # of the routes
    ctx.save_for_backward(x, matrix, routes, weight, bias, mean, variance)


def _backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs; the statistics only feed the running ones, so they pass none back."""
    gradients = pointwise_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu, ctx.pool)
    return *gradients, gradient if ctx.adds else None, None, None, None


pointwise_norm.register_autograd(_backward, setup_context=_save_for_backward)
