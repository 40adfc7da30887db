"""A pointwise map and the batch norm behind it as one operation, for channels-last images in bfloat16.

Forward: the matrix product also finds the statistics of its own result, which would else be read once more for them.
Backward: the gradient of the product is worked out where it is used, tile by tile, and is never in memory: one kernel
reads the product, the gradient that came and the map's input, writes the input's gradient and sums the matrix's. What
a pooling picked of the product is kept, a quarter of it, so that the norm's own gradients are found without the rest.

Letters: R rows (positions of all images), D in-channels, C out-channels, N rows of a tile, CH out-channels and K
in-channels of a program, both filled up to a power of 2. Where it is pooled, the rows of the backward kernel are those
of the result, each standing for four of the product; H x W is then the size of the result's images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.depthwise import PROCESSORS, summed
from lowrank.kernels.norm import first_of_four, last, like_result, normalised, reduced, scale_and_shift

FEWEST, MOST = 8, 128  # channels of either side, powers of 2: more spill from a program of `_back_kernel`


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
def _product_kernel(
    x, matrix, out, means, spreads, counts, R,
    D: tl.constexpr, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """The product, channels first: so a channel's sum lies within few threads."""
    channel, k = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    known, given = channel < C, k < D
    weight = tl.load(matrix + channel[:, None] * D + k[None, :], mask=known[:, None] & given[None, :], other=0.0)
    centre, spread = tl.zeros([CH], dtype=tl.float32), tl.zeros([CH], dtype=tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        first = (turn * tl.num_programs(1) + tl.program_id(1)) * N
        row = first + tl.arange(0, N)
        inside = (row < R)[None, :]
        columns = tl.load(x + row[None, :] * D + k[:, None], mask=inside & given[:, None], other=0.0)
        found = tl.dot(weight, columns, input_precision="ieee").to(out.dtype.element_ty)
        tl.store(out + row[None, :] * C + channel[:, None], found, mask=inside & known[:, None])
        count = tl.minimum(tl.maximum(R - first, 0), N).to(tl.float32)
        centre, spread, seen = taken_in(found.to(tl.float32), inside, count, centre, spread, seen)
    target = tl.program_id(1) * C + channel
    tl.store(means + target, centre, mask=known)
    tl.store(spreads + target, spread, mask=known)
    tl.store(counts + tl.program_id(1), seen)


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
def _used(gradient, x, to_x, weight, total, place, inside, k, D: tl.constexpr):
    """What one tile's gradient gives the map's input, which is written, and its matrix, which is added to `total`."""
    gradient = tl.where(inside[:, None], gradient, 0.0).to(x.dtype.element_ty)
    own, mask = place[:, None] * D + k[None, :], inside[:, None] & (k < D)[None, :]
    values = tl.load(x + own, mask=mask, other=0.0)
    back = tl.trans(tl.dot(tl.trans(weight), tl.trans(gradient), input_precision="ieee"))
    tl.store(to_x + own, back.to(to_x.dtype.element_ty), mask=mask)
    return tl.dot(tl.trans(gradient), values, total, input_precision="ieee")


@triton.jit
def _four(start, mask, scale, shift, W: tl.constexpr, C: tl.constexpr):
    """Four of the product as they are, and which of them is the first largest after normalisation, and its result."""
    p, q = tl.load(start, mask=mask, other=0.0), tl.load(start + C, mask=mask, other=0.0)
    start += 2 * W * C
    r, s = tl.load(start, mask=mask, other=0.0), tl.load(start + C, mask=mask, other=0.0)
    best = p.to(tl.float32) * scale + shift
    which = tl.zeros(p.shape, dtype=tl.int8)
    y = q.to(tl.float32) * scale + shift
    which, best = tl.where(y > best, 1, which).to(tl.int8), tl.maximum(best, y)
    y = r.to(tl.float32) * scale + shift
    which, best = tl.where(y > best, 2, which).to(tl.int8), tl.maximum(best, y)
    y = s.to(tl.float32) * scale + shift
    which, best = tl.where(y > best, 3, which).to(tl.int8), tl.maximum(best, y)
    return p, q, r, s, which, best


@triton.jit
def _back_kernel(
    gradient, product, x, matrix, weight, bias, mean, variance, to_bias, to_weight, to_x, parts, R, count, eps,
    D: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    CH: tl.constexpr, TURNS: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    channel, k = tl.arange(0, CH), tl.program_id(0) * K + tl.arange(0, K)
    known = channel < C
    scale, shift, inverse, centre = scale_and_shift(weight, bias, mean, variance, channel, known, eps)
    # As in `_gradient_kernel` of the norm
    slope = scale * inverse * tl.load(to_weight + channel, mask=known, other=0.0)[None, :] / count
    level = scale * tl.load(to_bias + channel, mask=known, other=0.0)[None, :] / count - slope * centre
    own = channel[:, None] * D + k[None, :]
    filled = known[:, None] & (k < D)[None, :]
    taps = tl.load(matrix + own, mask=filled, other=0.0)
    total = tl.zeros([CH, K], dtype=tl.float32)
    for turn in range(TURNS):
        row = (turn * tl.num_programs(1) + tl.program_id(1)) * N + tl.arange(0, N)
        inside = row < R
        mask = inside[:, None] & known[None, :]
        came = tl.load(gradient + row[:, None] * C + channel[None, :], mask=mask, other=0.0)
        if POOL:
            place = first_of_four(row, H, W)
            start = product + place[:, None] * C + channel[None, :]
            p, q, r, s, which, best = _four(start, mask, scale, shift, W, C)
            if RELU:
                which = tl.where(best > 0, which, 4)
            found = tl.where(which == 0, came.to(tl.float32) * scale, 0.0) - p.to(tl.float32) * slope - level
            total = _used(found, x, to_x, taps, total, place, inside, k, D)
            found = tl.where(which == 1, came.to(tl.float32) * scale, 0.0) - q.to(tl.float32) * slope - level
            total = _used(found, x, to_x, taps, total, place + 1, inside, k, D)
            found = tl.where(which == 2, came.to(tl.float32) * scale, 0.0) - r.to(tl.float32) * slope - level
            total = _used(found, x, to_x, taps, total, place + 2 * W, inside, k, D)
            found = tl.where(which == 3, came.to(tl.float32) * scale, 0.0) - s.to(tl.float32) * slope - level
            total = _used(found, x, to_x, taps, total, place + 2 * W + 1, inside, k, D)
        else:
            value = tl.load(product + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            came = came.to(tl.float32)
            if RELU:
                came = tl.where(value * scale + shift > 0, came, 0.0)
            total = _used(came * scale - slope * value - level, x, to_x, taps, total, row, inside, k, D)
    tl.store(parts + tl.program_id(1) * (C * D) + own, total, mask=filled)


def fits(channels: int, out_channels: int) -> bool:
    """Whether the kernels are made for maps of this shape."""
    return all(FEWEST <= each <= MOST and each & (each - 1) == 0 for each in (channels, out_channels))


@dataclass(frozen=True)
class Form:
    """How a kernel's work is cut, and what each program may use."""

    rows: int  # of a tile
    part: int  # out-channels of a program going forward, in-channels of one going back
    warps: int
    stages: int  # tiles under way, one of them being worked on
    at_once: int  # programs of a processor


def forward_form(channels: int, outs: int) -> Form:
    """What fits a processor's registers and shared memory, of `_product_kernel`."""
    few = channels <= 64
    return Form(128 if channels <= 128 else 64, min(outs, 128), 4 if few else 8, 3, 2 if few else 1)


def backward_form(channels: int, outs: int, pool: bool) -> Form:
    """Likewise of `_back_kernel`: sums of the matrix's gradient, (outs, part), and where it is pooled four tiles."""
    many = outs > 128
    part = min(channels, 64 if many else 128)
    return Form(16 if many else 32, part, 8, 2 if many or (pool and part > 64) else 3, 1)


def cut(rows: int, blocks: int, form: Form) -> tuple[dict[str, int], tuple[int, int]]:
    """The programs share tiles of rows; those that read the same rows run side by side."""
    height = min(form.rows, max(16, triton.next_power_of_2(rows)))
    tiles = triton.cdiv(rows, height)
    programs = min(tiles, max(1, PROCESSORS * form.at_once // blocks))
    constants = {
        "N": height, "TURNS": triton.cdiv(tiles, programs), "num_warps": form.warps, "num_stages": form.stages
    }  # fmt: skip
    return constants, (blocks, programs)


def product_with_statistics(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pointwise map of a channels-last x by a contiguous matrix, and its channels' mean and biased variance."""
    images, channels, height, width = x.shape
    outs, rows = len(matrix), x.numel() // channels
    out = torch.empty(
        (images, outs, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )  # fmt: skip
    form = forward_form(channels, outs)
    constants, grid = cut(rows, outs // form.part, form)
    means, spreads = (x.new_empty((grid[1], outs), dtype=torch.float32) for _ in range(2))
    counts = x.new_empty(grid[1], dtype=torch.float32)
    _product_kernel[grid](
        x, matrix, out, means, spreads, counts, rows, D=channels, C=outs, K=max(16, channels), CH=max(16, form.part),
        **constants,
    )  # fmt: skip
    return out, *merged(means, spreads, counts, rows)


def merged(means: Tensor, spreads: Tensor, counts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Each channel's mean and biased variance over all rows, from those that each program found, (programs, C)."""
    programs, channels = means.shape
    mean, variance = (means.new_empty(channels) for _ in range(2))
    _merge_kernel[(triton.cdiv(channels, 16),)](
        means, spreads, counts, mean, variance, rows, programs, C=channels, N=triton.next_power_of_2(programs), CH=16
    )
    return mean, variance


@torch.library.custom_op("lowrank::pointwise_norm", mutates_args=())
def pointwise_norm(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`norm` of a pointwise map: its result, mean and variance, then what is kept for the way back and has no gradient.

    That is the map's own result, and what the pooling picked of it (without pooling: nothing).

    Args:
        x: (B, D, H, W), the map's input.
        matrix: (C, D), in x's dtype.
        weight: (C), as all that follows is `norm`'s.
    """
    product, mean, variance = product_with_statistics(last(x), matrix.contiguous())
    picked = like_result(product, pool=True) if pool else product.new_empty(0)
    norms = (weight, bias, mean, variance, residual, eps, relu, pool, picked if pool else None)
    return normalised(product, *norms), mean, variance, product, picked


@pointwise_norm.register_fake
def _(
    x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    images, _, height, width = x.shape
    product = like_result(x.new_empty((images, len(matrix), height, width)), pool=False)
    mean, variance = (torch.empty(len(matrix), device=x.device) for _ in range(2))
    picked = like_result(product, pool=True) if pool else product.new_empty(0)
    return like_result(product, pool), mean, variance, product, picked


@torch.library.custom_op("lowrank::pointwise_norm_backward", mutates_args=())
def pointwise_norm_backward(
    gradient: Tensor, x: Tensor, matrix: Tensor, product: Tensor, picked: Tensor, weight: Tensor, bias: Tensor,
    mean: Tensor, variance: Tensor, eps: float, relu: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `pointwise_norm`'s x, matrix, weight and bias."""
    gradient, x, product, matrix = last(gradient), last(x), last(product), matrix.contiguous()
    seen = last(picked) if pool else product
    to_weight, to_bias = reduced(gradient, seen, weight, bias, mean, variance, eps, relu, pool=False)
    (outs, channels), (height, width) = matrix.shape, gradient.shape[2:]
    rows, to_x = gradient.numel() // outs, torch.empty_like(x)
    form = backward_form(channels, outs, pool)
    constants, grid = cut(rows, channels // form.part, form)
    parts = x.new_empty((grid[1], outs, channels), dtype=torch.float32)
    _back_kernel[grid](
        gradient, product, x, matrix, weight, bias, mean, variance, to_bias, to_weight, to_x, parts, rows,
        product.numel() // outs, eps, D=channels, C=outs, H=height, W=width, K=max(16, form.part), CH=max(16, outs),
        RELU=relu, POOL=pool, **constants,
    )  # fmt: skip
    return to_x, summed(parts, matrix.dtype), to_weight, to_bias


@pointwise_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, matrix: Tensor, product: Tensor, picked: Tensor, weight: Tensor, bias: Tensor,
    mean: Tensor, variance: Tensor, eps: float, relu: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    to_matrix = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    return like_result(x, pool=False), to_matrix, torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, matrix, weight, bias, residual, ctx.eps, ctx.relu, ctx.pool = inputs
    _, mean, variance, product, picked = output
    ctx.adds = residual is not None
    ctx.set_materialize_grads(False)  # of the product, a large one of zeros
    ctx.save_for_backward(x, matrix, product, picked, weight, bias, mean, variance)


def _gradients(ctx: Any, gradient: Tensor, *of_the_rest: Tensor | None) -> tuple[Tensor | None, ...]:
    """What is kept is read without gradients alone."""
    found = pointwise_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu, ctx.pool)
    return *found, gradient if ctx.adds else None, None, None, None


pointwise_norm.register_autograd(_gradients, setup_context=_keep)
