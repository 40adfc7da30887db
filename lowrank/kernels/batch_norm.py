"""Batch norm in training with what follows it (ReLU, 2 x 2 max pooling, a residual) for channels-last images.

Forward: one pass over the input for its statistics, one for the result. Backward: likewise two. The values in between
(normalised inputs, which of four was largest) are computed again from the input, so that they are never written, read
or stored.

With z = (x - mean) / deviation of each channel, the result is y = weight * z + bias. Source: Ioffe and Szegedy 2015,
"Batch normalization".

Letters: B images, H x W positions, R rows (positions of all images), C channels, G programs of a reduction, N rows of a
tile, CH channels of a tile, TURNS tiles of a program. Where the result is pooled, rows are those of the result, W is
the width of its images, and each row stands for four positions of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.depthwise import MULTIPROCESSORS
from lowrank.kernels.norm_formulas import pooled_origin, scale_and_shift, scale_and_shift_of, slope_and_level


@dataclass(frozen=True)
class TileConfig:
    """How a pass is cut into tiles, and what each program may use."""

    numbers: int  # of a tile; half as many where it is pooled and each stands for four inputs
    channels: int  # of a tile, at most
    warps: int
    programs_per_processor: int = 0  # that run at once and take several tiles each; 0: each program takes one tile


# Numbers, channels and warps of a tile, and programs of a processor where each takes several tiles. For each pass that
# of five with the least time in all over five norms in bfloat16 on an H200, 2026-11-30: 64 channels at 32 x 32, 512 at
# 4 x 4 with batch 512, as in ResNet-9; 160 at 32 x 32, 320 at 16 x 16 and 640 at 8 x 8 with batch 128, as in WRN-28-10
STATISTICS, REDUCE = TileConfig(4096, 32, 8, 3), TileConfig(4096, 64, 4, 3)
APPLY = GRADIENT = TileConfig(4096, 64, 4)
# Of a tile of the kernels that add what all programs of a reduction have summed, at most. A tile has the sums of all
# programs: a program that took one tile after another would wait for memory each time
SUM_NUMBERS, SUM_CHANNELS, SUM_WARPS = 8192, 16, 8


@triton.jit
def _statistics_kernel(
    x, sums, squares, R,
    C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Sum x - first row, and its squares: about a value of the channel itself, so that no digits cancel."""
    channel = tl.program_id(0) * CH + tl.arange(0, CH)
    valid = channel < C
    reference = tl.load(x + channel, mask=valid, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([N, CH], dtype=tl.float32)
    square = tl.zeros([N, CH], dtype=tl.float32)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        mask = (row < R)[:, None] & valid[None, :]
        values = tl.load(x + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        values = tl.where(mask, values - reference, 0.0)
        total += values
        square += values * values
    target = tl.program_id(1) * C + channel
    tl.store(sums + target, tl.sum(total, 0), mask=valid)
    tl.store(squares + target, tl.sum(square, 0), mask=valid)


@triton.jit
def _moments_kernel(
    x, sums, squares, mean, variance, R, G, C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr
):  # fmt: skip
    row, channel = tl.arange(0, N), tl.program_id(0) * CH + tl.arange(0, CH)
    valid = channel < C
    mask = (row < G)[:, None] & valid[None, :]
    offsets = row[:, None] * C + channel[None, :]
    total = tl.load(sums + offsets, mask=mask, other=0.0)
    square = tl.load(squares + offsets, mask=mask, other=0.0)
    offset = tl.sum(total, 0) / R
    reference = tl.load(x + channel, mask=valid, other=0.0).to(tl.float32)
    tl.store(mean + channel, reference + offset, mask=valid)
    second_moment = tl.sum(square, 0) / R - offset * offset
    tl.store(variance + channel, tl.where(second_moment < 0, 0.0, second_moment), mask=valid)


@triton.jit
def _joined_statistics(parts, channel, valid, C: tl.constexpr, G: tl.constexpr, CH: tl.constexpr):
    """Join mean and variance of G equally large parts, (G, 2, C), about the joined mean, so that no digits cancel."""
    centre = tl.zeros([CH], dtype=tl.float32)
    for part in range(G):
        centre += tl.load(parts + part * 2 * C + channel, mask=valid, other=0.0)
    centre = centre / G
    spread = tl.zeros([CH], dtype=tl.float32)
    for part in range(G):
        distance = tl.load(parts + part * 2 * C + channel, mask=valid, other=0.0) - centre
        spread += tl.load(parts + (part * 2 + 1) * C + channel, mask=valid, other=0.0) + distance * distance
    return centre, spread / G


@triton.jit
def _argmax_of_four(start, mask, scale, shift, W: tl.constexpr, C: tl.constexpr):
    """Return four inputs, which of them is the first largest after the norm, and its input and result."""
    p = tl.load(start, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(start + C, mask=mask, other=0.0).to(tl.float32)
    r = tl.load(start + 2 * W * C, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(start + (2 * W + 1) * C, mask=mask, other=0.0).to(tl.float32)
    best, value = p * scale + shift, p
    which = tl.zeros(p.shape, dtype=tl.int32)
    y = q * scale + shift
    which, value, best = tl.where(y > best, 1, which), tl.where(y > best, q, value), tl.maximum(best, y)
    y = r * scale + shift
    which, value, best = tl.where(y > best, 2, which), tl.where(y > best, r, value), tl.maximum(best, y)
    y = s * scale + shift
    which, value, best = tl.where(y > best, 3, which), tl.where(y > best, s, value), tl.maximum(best, y)
    return p, q, r, s, which, value, best


@triton.jit
def _apply_kernel(
    x, weight, bias, mean, variance, parts, residual, out, R, eps,
    C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, CH: tl.constexpr, G: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Apply a norm; with G > 1 mean and variance are written, joined from those of the parts, else read."""
    channel = tl.program_id(0) % tl.cdiv(C, CH) * CH + tl.arange(0, CH)
    valid = channel < C
    if G > 1:
        centre, spread = _joined_statistics(parts, channel, valid, C, G, CH)
        if tl.program_id(0) < tl.cdiv(C, CH):
            tl.store(mean + channel, centre, mask=valid)
            tl.store(variance + channel, spread, mask=valid)
        scale, shift, _, _ = scale_and_shift_of(weight, bias, centre, spread, channel, valid, eps)
    else:
        scale, shift, _, _ = scale_and_shift(weight, bias, mean, variance, channel, valid, eps)
    row = tl.program_id(0) // tl.cdiv(C, CH) * N + tl.arange(0, N)
    mask = (row < R)[:, None] & valid[None, :]
    offsets = row[:, None] * C + channel[None, :]
    if POOL:
        start = x + pooled_origin(row, W)[:, None] * C + channel[None, :]
        _, _, _, _, _, _, y = _argmax_of_four(start, mask, scale, shift, W, C)
    else:
        y = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * scale + shift
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
    if ADD:
        y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _reduce_kernel(
    gradient, x, weight, bias, mean, variance, sums, products, R, eps,
    C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """Sum the gradient, and its product with the normalised input."""
    channel = tl.program_id(0) * CH + tl.arange(0, CH)
    valid = channel < C
    scale, shift, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, valid, eps)
    total = tl.zeros([N, CH], dtype=tl.float32)
    product = tl.zeros([N, CH], dtype=tl.float32)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        mask = (row < R)[:, None] & valid[None, :]
        offsets = row[:, None] * C + channel[None, :]
        grad = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        if POOL:
            start = x + pooled_origin(row, W)[:, None] * C + channel[None, :]
            _, _, _, _, _, value, best = _argmax_of_four(start, mask, scale, shift, W, C)
        else:
            value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
            best = value * scale + shift
        if RELU:
            grad = tl.where(best > 0, grad, 0.0)
        total += grad
        product += grad * (value - centre)
    target = tl.program_id(1) * C + channel
    tl.store(sums + target, tl.sum(total, 0), mask=valid)
    tl.store(products + target, tl.sum(product * inverse, 0), mask=valid)


@triton.jit
def _gather_kernel(
    sums, products, grad_bias, grad_weight, G, C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr
):  # fmt: skip
    row, channel = tl.arange(0, N), tl.program_id(0) * CH + tl.arange(0, CH)
    valid = channel < C
    mask = (row < G)[:, None] & valid[None, :]
    offsets = row[:, None] * C + channel[None, :]
    total = tl.load(sums + offsets, mask=mask, other=0.0)
    product = tl.load(products + offsets, mask=mask, other=0.0)
    tl.store(grad_bias + channel, tl.sum(total, 0), mask=valid)
    tl.store(grad_weight + channel, tl.sum(product, 0), mask=valid)


@triton.jit
def _gradient_kernel(
    gradient, x, weight, bias, mean, variance, grad_bias, grad_weight, other, grad_x, R, count, eps,
    C: tl.constexpr, W: tl.constexpr, N: tl.constexpr, CH: tl.constexpr, G: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Compute the gradient by the input; those by bias and weight come in G addends, 2 C numbers apart.

    With ADD, `other` is added; not where the result is pooled.
    """
    channel = tl.program_id(0) % tl.cdiv(C, CH) * CH + tl.arange(0, CH)
    valid = channel < C
    scale, shift, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, valid, eps)
    of_weight = tl.load(grad_weight + channel, mask=valid, other=0.0)
    of_bias = tl.load(grad_bias + channel, mask=valid, other=0.0)
    for part in range(1, G):
        of_weight += tl.load(grad_weight + part * 2 * C + channel, mask=valid, other=0.0)
        of_bias += tl.load(grad_bias + part * 2 * C + channel, mask=valid, other=0.0)
    slope, level = slope_and_level(scale, inverse, centre, of_weight, of_bias, count)
    row = tl.program_id(0) // tl.cdiv(C, CH) * N + tl.arange(0, N)
    mask = (row < R)[:, None] & valid[None, :]
    offsets = row[:, None] * C + channel[None, :]
    grad = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    if POOL:
        origin = pooled_origin(row, W)[:, None] * C + channel[None, :]
        p, q, r, s, which, value, best = _argmax_of_four(x + origin, mask, scale, shift, W, C)
        if RELU:
            grad = tl.where(best > 0, grad, 0.0)
        grad = grad * scale
        element_type = grad_x.dtype.element_ty
        tl.store(grad_x + origin, (tl.where(which == 0, grad, 0.0) - slope * p - level).to(element_type), mask=mask)
        tl.store(grad_x + origin + C, (tl.where(which == 1, grad, 0.0) - slope * q - level).to(element_type), mask=mask)
        origin += 2 * W * C
        tl.store(grad_x + origin, (tl.where(which == 2, grad, 0.0) - slope * r - level).to(element_type), mask=mask)
        tl.store(grad_x + origin + C, (tl.where(which == 3, grad, 0.0) - slope * s - level).to(element_type), mask=mask)
    else:
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            grad = tl.where(value * scale + shift > 0, grad, 0.0)
        grad = grad * scale - slope * value - level
        if ADD:
            grad += tl.load(other + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + offsets, grad.to(grad_x.dtype.element_ty), mask=mask)


def _tile(channels: int, rows: int, config: TileConfig, pool: bool = False) -> tuple[dict[str, int], tuple[int, int]]:
    """Return the constants of a tile, and how many tiles there are (channels, rows).

    Programs are numbered by channels first, so that those that read the same rows run side by side.
    """
    part = min(triton.next_power_of_2(channels), config.channels)
    numbers = config.numbers // 2 if pool else config.numbers
    height = max(1, min(numbers // part, triton.next_power_of_2(rows)))
    constants = {"C": channels, "N": height, "CH": part, "num_warps": config.warps}
    return constants, (triton.cdiv(channels, part), triton.cdiv(rows, height))


def _programs(tiles: tuple[int, int], config: TileConfig) -> tuple[int, int]:
    """Return the programs of a reduction over so many tiles, and how many tiles each takes."""
    programs = min(tiles[1], max(1, MULTIPROCESSORS * config.programs_per_processor // tiles[0]))
    return programs, triton.cdiv(tiles[1], programs)


def _sum_tile(channels: int, programs: int) -> tuple[dict[str, int], tuple[int]]:
    """Return the constants of a kernel that adds what so many programs have summed, and its grid."""
    height = triton.next_power_of_2(programs)
    part = max(1, min(SUM_CHANNELS, SUM_NUMBERS // height))
    return {"C": channels, "N": height, "CH": part, "num_warps": SUM_WARPS}, (triton.cdiv(channels, part),)


def to_channels_last(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) with channels-last strides."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_result(
    x: Tensor, pool: bool = False, *, channels: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:  # fmt: skip
    """Allocate a result of an operation on x, channels-last.

    Args:
        x: (B, C, H, W).
        pool: whether the result has half the height and width.
        channels: of the result; None for those of x.
        dtype: of the result; None for that of x.
    """
    images, in_channels, height, width = x.shape
    size = (height // 2, width // 2) if pool else (height, width)
    shape = (images, channels or in_channels, *size)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def batch_statistics(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute each channel's mean and biased variance, float32 (C,), of a channels-last x.

    Args:
        x: (B, C, H, W).
        out: (2, C), into which they are written; None for new tensors.
    """
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    mean, variance = (torch.empty(channels, device=x.device) for _ in range(2)) if out is None else out
    tile, tiles = _tile(channels, rows, STATISTICS)
    programs, turns = _programs(tiles, STATISTICS)
    sums, squares = (torch.empty((programs, channels), device=x.device) for _ in range(2))
    _statistics_kernel[(tiles[0], programs)](x, sums, squares, rows, **tile, TURNS=turns)
    tile, grid = _sum_tile(channels, programs)
    _moments_kernel[grid](x, sums, squares, mean, variance, rows, programs, **tile)
    return mean, variance


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, residual: Tensor | None, eps: float,
    relu: bool, pool: bool,
) -> Tensor:  # fmt: skip
    """Apply `norm` to a channels-last x by statistics that are known."""
    return _normalise(x, weight, bias, mean, variance, mean, 1, residual, eps, relu, pool)


def normalise_by_parts(
    x: Tensor, weight: Tensor, bias: Tensor, parts: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Apply `norm` to a channels-last x by the statistics of equally large parts of a batch.

    Args:
        x: one of the parts, (B, C, H, W).
        weight: (C,), float32.
        bias: (C,), float32.
        parts: mean and biased variance of each part, float32 (G, 2, C).
        residual: added to the result; None for none.
        eps: added to the variance.
        relu: whether negative values become zero.
        pool: whether only the largest of each 2 x 2 positions stays.

    Returns:
        The result, and mean and biased variance of the batch, both (C,).
    """
    if len(parts) == 1:
        mean, variance = parts[0, 0].clone(), parts[0, 1].clone()  # results of an operation may share no memory
        return normalise(x, weight, bias, mean, variance, residual, eps, relu, pool), mean, variance
    mean, variance = (torch.empty(x.shape[1], device=x.device) for _ in range(2))
    return _normalise(x, weight, bias, mean, variance, parts, len(parts), residual, eps, relu, pool), mean, variance


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, parts: Tensor, count: int,
    residual: Tensor | None, eps: float, relu: bool, pool: bool,
) -> Tensor:  # fmt: skip
    out, channels = empty_result(x, pool), x.shape[1]
    rows = out.numel() // channels
    tile, tiles = _tile(channels, rows, APPLY, pool)
    _apply_kernel[(tiles[0] * tiles[1],)](
        x, weight, bias, mean, variance, parts, out if residual is None else to_channels_last(residual), out, rows,
        eps, **tile, W=out.shape[3], G=count, RELU=relu, POOL=pool, ADD=residual is not None,
    )  # fmt: skip
    return out


def reduce_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool,
    pool: bool, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of the weight and bias; x and gradient are channels-last.

    They are written into `out` (2, C) if it is not None.
    """
    channels, rows = x.shape[1], gradient.numel() // x.shape[1]
    grad_weight, grad_bias = (torch.empty_like(weight), torch.empty_like(bias)) if out is None else out
    tile, tiles = _tile(channels, rows, REDUCE, pool)
    programs, turns = _programs(tiles, REDUCE)
    sums, products = (torch.empty((programs, channels), device=x.device) for _ in range(2))
    _reduce_kernel[(tiles[0], programs)](
        gradient, x, weight, bias, mean, variance, sums, products, rows, eps, **tile, TURNS=turns,
        W=gradient.shape[3], RELU=relu, POOL=pool,
    )  # fmt: skip
    tile, grid = _sum_tile(channels, programs)
    _gather_kernel[grid](sums, products, grad_bias, grad_weight, programs, **tile)
    return grad_weight, grad_bias


def input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, grad_bias: Tensor,
    grad_weight: Tensor, count: int, eps: float, relu: bool, pool: bool, *, parts: int = 1,
    other: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute the gradient of a channels-last x from those of the bias and weight, each a sum over `count` rows.

    With several parts, these are the first of a table (parts, 2, C), whose sum is taken. `other` is added to the
    result; only where nothing is pooled.
    """
    channels, rows, grad_x = x.shape[1], gradient.numel() // x.shape[1], torch.empty_like(x)
    tile, tiles = _tile(channels, rows, GRADIENT, pool)
    _gradient_kernel[(tiles[0] * tiles[1],)](
        gradient, x, weight, bias, mean, variance, grad_bias, grad_weight,
        grad_x if other is None else to_channels_last(other), grad_x, rows, count, eps,
        **tile, W=gradient.shape[3], G=parts, RELU=relu, POOL=pool, ADD=other is not None,
    )  # fmt: skip
    return grad_x


@torch.library.custom_op("lowrank::norm", mutates_args=())
def norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the statistics of the batch, then apply ReLU, 2 x 2 max pooling and a residual.

    Args:
        x: (B, C, H, W), H and W even where it is pooled.
        weight: (C,), float32.
        bias: (C,), float32.
        residual: added to the result, of its shape; None for none.
        eps: added to the variance.
        relu: whether negative values become zero.
        pool: whether only the largest of each 2 x 2 positions stays.

    Returns:
        The result, in x's dtype, channels-last, and each channel's mean and biased variance, float32 (C,).
    """
    x = to_channels_last(x)
    mean, variance = batch_statistics(x)
    return normalise(x, weight, bias, mean, variance, residual, eps, relu, pool), mean, variance


@norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(x.shape[1], device=x.device) for _ in range(2))
    return empty_result(x, pool), mean, variance


@torch.library.custom_op("lowrank::norm_backward", mutates_args=())
def norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool,
    pool: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of `norm`.

    Args:
        gradient: of the result.
        x: as `norm` took it, as are weight, bias, eps, relu and pool.
        weight: (C,).
        bias: (C,).
        mean: as `norm` returned it, (C,).
        variance: as `norm` returned it, (C,).
        eps: added to the variance.
        relu: whether there was a ReLU.
        pool: whether there was a pooling.
        other: another gradient of x, to be added to the first result; None for none, as where there was a pooling.

    Returns:
        Those by x, weight and bias.
    """
    x, gradient = to_channels_last(x), to_channels_last(gradient)
    grad_weight, grad_bias = reduce_gradients(gradient, x, weight, bias, mean, variance, eps, relu, pool)
    count = x.numel() // x.shape[1]
    grad_x = input_gradient(
        gradient, x, weight, bias, mean, variance, grad_bias, grad_weight, count, eps, relu, pool, other=other
    )
    return grad_x, grad_weight, grad_bias


@norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool,
    pool: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_result(x), torch.empty_like(weight), torch.empty_like(bias)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.eps, ctx.relu, ctx.pool = inputs
    ctx.adds = residual is not None
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs; the statistics only feed the running ones, so they pass none back."""
    gradients = norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu, ctx.pool)
    return *gradients, gradient if ctx.adds else None, None, None, None


norm.register_autograd(_backward, setup_context=_save_for_backward)
