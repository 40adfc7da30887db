"""Depthwise 3 x 3 convolution for channels-last images: one kernel forward, one for both gradients.

The step of a small student is bound by memory traffic. A program works on four rows of an image at once, so that each
row is read once for three of them; the backward kernel reads the gradient once for both results.

Letters: B images, C channels, H x W positions, W2 the power of 2 that holds W, CH channels of a program, BLOCKS groups
of four rows of an image, TILES such groups of all images, TURNS groups of a program, G programs of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # of a program at a time; the kernels are written out for this number
MAX_WIDTH = 64  # of an image: a program holds whole rows
MULTIPROCESSORS = 132  # of an H100 or H200
WARPS = 4


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel's work is divided, and what each program may use."""

    tile_size: int  # numbers of a tile; here, of the part of a row that a program works on
    warps: int
    programs_per_processor: int  # that run at once
    max_registers: int | None = None  # of a thread; None for no limit

    @property
    def options(self) -> dict[str, int | None]:
        """The keyword arguments of a launch."""
        return {"num_warps": self.warps, "maxnreg": self.max_registers}


def forward_config(width: int) -> LaunchConfig:
    """Return what is fastest forward for images of this width, on an H100."""
    return LaunchConfig(1024, 8, 3, 80) if width > 16 else LaunchConfig(512, 4, 5)


def backward_config(width: int) -> LaunchConfig:
    """Return what is fastest backward for images of this width, on an H100."""
    return LaunchConfig(512, 4, 4, 128) if width > 8 else LaunchConfig(256, 4, 6, 80)


@triton.jit
def _load_shifts(x, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Load a row shifted by one to the right, as it is, and by one to the left; zeros outside of the image."""
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    inside = mask & (row >= 0) & (row < H)
    before = tl.load(x + start - C, mask=inside & ((w > 0) & (w < W))[:, None], other=0.0).to(tl.float32)
    middle = tl.load(x + start, mask=inside & (w < W)[:, None], other=0.0).to(tl.float32)
    after = tl.load(x + start + C, mask=inside & (w < W - 1)[:, None], other=0.0).to(tl.float32)
    return before, middle, after


@triton.jit
def _load_kernel_row(weight, channel, valid, row: tl.constexpr):
    """Load one row of each channel's kernel: three entries, each (1, CH)."""
    taps = weight + channel * 9 + 3 * row
    first, second = tl.load(taps, mask=valid, other=0.0), tl.load(taps + 1, mask=valid, other=0.0)
    return first[None, :], second[None, :], tl.load(taps + 2, mask=valid, other=0.0)[None, :]


@triton.jit
def _store_row(out, values, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    tl.store(out + start, values.to(out.dtype.element_ty), mask=mask & (w < W)[:, None] & (row < H))


@triton.jit
def _forward_kernel(
    x, weight, out,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, BLOCKS: tl.constexpr,
    TILES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Work on groups of four rows, one after the other: the kernel's entries are read once for all of them."""
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    valid = channel < C
    u0, u1, u2 = _load_kernel_row(weight, channel, valid, 0)
    v0, v1, v2 = _load_kernel_row(weight, channel, valid, 1)
    t0, t1, t2 = _load_kernel_row(weight, channel, valid, 2)
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        image, top = tile // BLOCKS, (tile % BLOCKS) * 4
        mask = valid[None, :] & (w < W2)[:, None] & (tile < TILES)
        lt, md, rt = _load_shifts(x, image, top - 1, w, channel, mask, C, H, W)
        a = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _load_shifts(x, image, top, w, channel, mask, C, H, W)
        a += lt * v0 + md * v1 + rt * v2
        b = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _load_shifts(x, image, top + 1, w, channel, mask, C, H, W)
        a += lt * t0 + md * t1 + rt * t2
        b += lt * v0 + md * v1 + rt * v2
        c = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _load_shifts(x, image, top + 2, w, channel, mask, C, H, W)
        b += lt * t0 + md * t1 + rt * t2
        c += lt * v0 + md * v1 + rt * v2
        d = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _load_shifts(x, image, top + 3, w, channel, mask, C, H, W)
        c += lt * t0 + md * t1 + rt * t2
        d += lt * v0 + md * v1 + rt * v2
        lt, md, rt = _load_shifts(x, image, top + 4, w, channel, mask, C, H, W)
        d += lt * t0 + md * t1 + rt * t2
        _store_row(out, a, image, top, w, channel, mask, C, H, W)
        _store_row(out, b, image, top + 1, w, channel, mask, C, H, W)
        _store_row(out, c, image, top + 2, w, channel, mask, C, H, W)
        _store_row(out, d, image, top + 3, w, channel, mask, C, H, W)


@triton.jit
def _load_row(x, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    return tl.load(x + start, mask=mask & (w < W)[:, None] & (row < H), other=0.0).to(tl.float32)


@triton.jit
def _store_gradient(
    out, values, other, image, row, w, channel, mask,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Store a row of x's gradient."""
    if ADD:
        values += _load_row(other, image, row, w, channel, mask, C, H, W)
    _store_row(out, values, image, row, w, channel, mask, C, H, W)


@triton.jit
def _add_products(first, second, third, lt, md, rt, values):
    """Add the products of a row's shifts and `values` to three sums."""
    return first + lt * values, second + md * values, third + rt * values


@triton.jit
def _store_sums(target, first, second, third, valid):
    tl.store(target, tl.sum(first, 0), valid)
    tl.store(target + 1, tl.sum(second, 0), valid)
    tl.store(target + 2, tl.sum(third, 0), valid)


@triton.jit
def _backward_kernel(  # written out: kernels have no lists
    gradient, x, weight, other, grad_x, grad_weight,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, BLOCKS: tl.constexpr,
    TILES: tl.constexpr, TURNS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Work on groups of four rows, one after the other; each program sums its own part of the weight's gradient.

    With ADD `other` is added to the input's gradient.
    """
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    valid = channel < C
    # A left neighbour of the forward pass is a right neighbour of the backward pass
    u2, u1, u0 = _load_kernel_row(weight, channel, valid, 0)
    v2, v1, v0 = _load_kernel_row(weight, channel, valid, 1)
    t2, t1, t0 = _load_kernel_row(weight, channel, valid, 2)
    s0 = tl.zeros([W2, CH], dtype=tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8 = s0, s0, s0, s0, s0, s0, s0, s0
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        image, top = tile // BLOCKS, (tile % BLOCKS) * 4
        mask = valid[None, :] & (w < W2)[:, None] & (tile < TILES)
        p = _load_row(x, image, top, w, channel, mask, C, H, W)
        lt, md, rt = _load_shifts(gradient, image, top - 1, w, channel, mask, C, H, W)
        a = lt * t0 + md * t1 + rt * t2
        s8, s7, s6 = _add_products(s8, s7, s6, lt, md, rt, p)
        q = _load_row(x, image, top + 1, w, channel, mask, C, H, W)
        lt, md, rt = _load_shifts(gradient, image, top, w, channel, mask, C, H, W)
        a += lt * v0 + md * v1 + rt * v2
        b = lt * t0 + md * t1 + rt * t2
        s5, s4, s3 = _add_products(s5, s4, s3, lt, md, rt, p)
        s8, s7, s6 = _add_products(s8, s7, s6, lt, md, rt, q)
        o = _load_row(x, image, top + 2, w, channel, mask, C, H, W)
        lt, md, rt = _load_shifts(gradient, image, top + 1, w, channel, mask, C, H, W)
        a += lt * u0 + md * u1 + rt * u2
        b += lt * v0 + md * v1 + rt * v2
        c = lt * t0 + md * t1 + rt * t2
        s2, s1, s0 = _add_products(s2, s1, s0, lt, md, rt, p)
        s5, s4, s3 = _add_products(s5, s4, s3, lt, md, rt, q)
        s8, s7, s6 = _add_products(s8, s7, s6, lt, md, rt, o)
        _store_gradient(grad_x, a, other, image, top, w, channel, mask, C, H, W, ADD)
        p = _load_row(x, image, top + 3, w, channel, mask, C, H, W)
        lt, md, rt = _load_shifts(gradient, image, top + 2, w, channel, mask, C, H, W)
        b += lt * u0 + md * u1 + rt * u2
        c += lt * v0 + md * v1 + rt * v2
        d = lt * t0 + md * t1 + rt * t2
        s2, s1, s0 = _add_products(s2, s1, s0, lt, md, rt, q)
        s5, s4, s3 = _add_products(s5, s4, s3, lt, md, rt, o)
        s8, s7, s6 = _add_products(s8, s7, s6, lt, md, rt, p)
        _store_gradient(grad_x, b, other, image, top + 1, w, channel, mask, C, H, W, ADD)
        lt, md, rt = _load_shifts(gradient, image, top + 3, w, channel, mask, C, H, W)
        c += lt * u0 + md * u1 + rt * u2
        d += lt * v0 + md * v1 + rt * v2
        s2, s1, s0 = _add_products(s2, s1, s0, lt, md, rt, o)
        s5, s4, s3 = _add_products(s5, s4, s3, lt, md, rt, p)
        _store_gradient(grad_x, c, other, image, top + 2, w, channel, mask, C, H, W, ADD)
        lt, md, rt = _load_shifts(gradient, image, top + 4, w, channel, mask, C, H, W)
        d += lt * u0 + md * u1 + rt * u2
        s2, s1, s0 = _add_products(s2, s1, s0, lt, md, rt, p)
        _store_gradient(grad_x, d, other, image, top + 3, w, channel, mask, C, H, W, ADD)
    target = grad_weight + (tl.program_id(0) * C + channel) * 9
    _store_sums(target, s0, s1, s2, valid)
    _store_sums(target + 3, s3, s4, s5, valid)
    _store_sums(target + 6, s6, s7, s8, valid)


@triton.jit
def _sum_kernel(parts, total, G, columns, N: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr):
    """Sum the parts of G programs."""
    column = tl.program_id(0) * CH + tl.arange(0, CH)
    sums = tl.zeros([N, CH], dtype=tl.float32)
    for turn in range(TURNS):
        row = turn * N + tl.arange(0, N)
        mask = (row < G)[:, None] & (column < columns)[None, :]
        sums += tl.load(parts + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(total + column, tl.sum(sums, 0), mask=column < columns)


def _launch_grid(x: Tensor, config: LaunchConfig) -> tuple[dict[str, int | None], tuple[int, int]]:
    """Divide the images among programs: return the constants of a kernel, and its grid."""
    images, channels, height, width = x.shape
    padded, blocks = triton.next_power_of_2(width), triton.cdiv(height, ROWS)
    part = min(triton.next_power_of_2(channels), max(config.tile_size // padded, 8))
    tiles, parts = images * blocks, triton.cdiv(channels, part)
    programs = min(tiles, max(1, MULTIPROCESSORS * config.programs_per_processor // parts))
    constants = {
        "C": channels, "H": height, "W": width, "W2": padded, "CH": part, "BLOCKS": blocks, "TILES": tiles,
        "TURNS": triton.cdiv(tiles, programs), **config.options,
    }  # fmt: skip
    return constants, (programs, parts)


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum float32 parts over the first dimension, always in the same order.

    Args:
        parts: (G, ..), one of each program.
        dtype: of the result.
    """
    total, programs = parts.new_empty(parts.shape[1:], dtype=dtype), len(parts)
    columns, height = (16, 64) if total.numel() < 4096 else (64, 32)
    _sum_kernel[(triton.cdiv(total.numel(), columns),)](
        parts, total, programs, total.numel(), N=height, CH=columns, TURNS=triton.cdiv(programs, height),
        num_warps=WARPS,
    )  # fmt: skip
    return total


@torch.library.custom_op("lowrank::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve depthwise by 3 x 3 kernels with stride 1 and padding 1.

    Args:
        x: (B, C, H, W), at most `MAX_WIDTH` wide and of `lowrank.kernels.dispatch.MAX_ENTRIES` entries.
        weight: (C, 1, 3, 3), float32.

    Returns:
        (B, C, H, W) in x's dtype, channels-last.
    """
    x, out = x.contiguous(memory_format=torch.channels_last), _empty_like(x, weight)
    constants, grid = _launch_grid(x, forward_config(x.shape[3]))
    _forward_kernel[grid](x, weight.contiguous(), out, **constants)
    return out


@depthwise.register_fake
def _empty_like(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("lowrank::depthwise_backward", mutates_args=())
def depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `depthwise`.

    Args:
        gradient: of the result, (B, C, H, W).
        x: as `depthwise` took it.
        weight: (C, 1, 3, 3), float32.
        other: another gradient of x, to be added to the first result; None for none.

    Returns:
        Those by x, in its dtype, and by the weight, float32.
    """
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    constants, grid = _launch_grid(x, backward_config(x.shape[3]))
    grad_x, parts = torch.empty_like(x), x.new_empty((grid[0], *weight.shape), dtype=torch.float32)
    added = grad_x if other is None else other.contiguous(memory_format=torch.channels_last)
    _backward_kernel[grid](gradient, x, weight.contiguous(), added, grad_x, parts, **constants, ADD=other is not None)
    return grad_x, sum_parts(parts, torch.float32)


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _empty_like(x, weight), torch.empty(weight.shape, device=weight.device)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = depthwise_backward(gradient, *ctx.saved_tensors)
    return gradients


depthwise.register_autograd(_backward, setup_context=_save_for_backward)
