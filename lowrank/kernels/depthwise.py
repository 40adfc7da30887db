"""Depthwise 3 x 3 convolution for channels-last images: one kernel forward, one for both gradients.

The step of a small student is bound by memory traffic. A program works on four rows of an image at once, so that each
row is read for three of them; the backward kernel reads the gradient once for both results.

Letters: C channels, H x W positions, W2 the power of 2 that holds W, CH channels of a program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # of a program at a time; the kernels are written out for it
MAX_WIDTH = 64  # images that one row's part can hold
MULTIPROCESSORS = 132  # of an H100 or H200
WARPS = 4


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel's work is cut, and what each program may use."""

    numbers: int  # of a tile: here, in a row's part of a program
    warps: int
    programs_per_processor: int  # programs of a processor
    registers: int | None = None  # of a thread; None: as many as it wants

    @property
    def options(self) -> dict[str, int | None]:
        """What a launch is told."""
        return {"num_warps": self.warps, "maxnreg": self.registers}


def forward_config(width: int) -> LaunchConfig:
    """What is fastest for images of this width, on an H100."""
    return LaunchConfig(1024, 8, 3, 80) if width > 16 else LaunchConfig(512, 4, 5)


def backward_config(width: int) -> LaunchConfig:
    """Likewise going back."""
    return LaunchConfig(512, 4, 4, 128) if width > 8 else LaunchConfig(256, 4, 6, 80)


@triton.jit
def _row(x, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Row `row` shifted by one to the right, as it is, and by one to the left; zeros outside of the image."""
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    inside = mask & (row >= 0) & (row < H)
    left = tl.load(x + start - C, mask=inside & ((w > 0) & (w < W))[:, None], other=0.0).to(tl.float32)
    middle = tl.load(x + start, mask=inside & (w < W)[:, None], other=0.0).to(tl.float32)
    right = tl.load(x + start + C, mask=inside & (w < W - 1)[:, None], other=0.0).to(tl.float32)
    return left, middle, right


@triton.jit
def _kernel_row(weight, channel, known, row: tl.constexpr):
    """Three entries of each channel's kernel, each (1, CH)."""
    taps = weight + channel * 9 + 3 * row
    first, second = tl.load(taps, mask=known, other=0.0), tl.load(taps + 1, mask=known, other=0.0)
    return first[None, :], second[None, :], tl.load(taps + 2, mask=known, other=0.0)[None, :]


@triton.jit
def _put(out, values, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    tl.store(out + start, values.to(out.dtype.element_ty), mask=mask & (w < W)[:, None] & (row < H))


@triton.jit
def _forward_kernel(
    x, weight, out,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, BLOCKS: tl.constexpr,
    TILES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Groups of four rows, one after the other: the kernel's entries are read once for all of them."""
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    known = channel < C
    u0, u1, u2 = _kernel_row(weight, channel, known, 0)
    v0, v1, v2 = _kernel_row(weight, channel, known, 1)
    t0, t1, t2 = _kernel_row(weight, channel, known, 2)
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        image, top = tile // BLOCKS, (tile % BLOCKS) * 4
        mask = known[None, :] & (w < W2)[:, None] & (tile < TILES)
        lt, md, rt = _row(x, image, top - 1, w, channel, mask, C, H, W)
        a = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _row(x, image, top, w, channel, mask, C, H, W)
        a += lt * v0 + md * v1 + rt * v2
        b = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _row(x, image, top + 1, w, channel, mask, C, H, W)
        a += lt * t0 + md * t1 + rt * t2
        b += lt * v0 + md * v1 + rt * v2
        c = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _row(x, image, top + 2, w, channel, mask, C, H, W)
        b += lt * t0 + md * t1 + rt * t2
        c += lt * v0 + md * v1 + rt * v2
        d = lt * u0 + md * u1 + rt * u2
        lt, md, rt = _row(x, image, top + 3, w, channel, mask, C, H, W)
        c += lt * t0 + md * t1 + rt * t2
        d += lt * v0 + md * v1 + rt * v2
        lt, md, rt = _row(x, image, top + 4, w, channel, mask, C, H, W)
        d += lt * t0 + md * t1 + rt * t2
        _put(out, a, image, top, w, channel, mask, C, H, W)
        _put(out, b, image, top + 1, w, channel, mask, C, H, W)
        _put(out, c, image, top + 2, w, channel, mask, C, H, W)
        _put(out, d, image, top + 3, w, channel, mask, C, H, W)


@triton.jit
def _middle(x, image, row, w, channel, mask, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    start = ((image * H + row) * W + w[:, None]) * C + channel[None, :]
    return tl.load(x + start, mask=mask & (w < W)[:, None] & (row < H), other=0.0).to(tl.float32)


@triton.jit
def _put_sum(out, values, other, image, row, w, channel, mask, ADD: tl.constexpr,
             C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):  # fmt: skip
    if ADD:
        values += _middle(other, image, row, w, channel, mask, C, H, W)
    _put(out, values, image, row, w, channel, mask, C, H, W)


@triton.jit
def _added(first, second, third, lt, md, rt, values):
    """Three sums, with the products of a row's shifts and `values` added."""
    return first + lt * values, second + md * values, third + rt * values


@triton.jit
def _put_sums(target, first, second, third, known):
    tl.store(target, tl.sum(first, 0), known)
    tl.store(target + 1, tl.sum(second, 0), known)
    tl.store(target + 2, tl.sum(third, 0), known)


@triton.jit
def _backward_kernel(  # noqa: PLR0915  # written out: kernels have no lists
    gradient, x, weight, other, to_x, to_weight,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, BLOCKS: tl.constexpr,
    TILES: tl.constexpr, TURNS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Groups of four rows, one after the other; each program has its own sums of the weight's gradient."""
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    known = channel < C
    # What is a left neighbour going forward is a right one on the way back
    u2, u1, u0 = _kernel_row(weight, channel, known, 0)
    v2, v1, v0 = _kernel_row(weight, channel, known, 1)
    t2, t1, t0 = _kernel_row(weight, channel, known, 2)
    s0 = tl.zeros([W2, CH], dtype=tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8 = s0, s0, s0, s0, s0, s0, s0, s0
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        image, top = tile // BLOCKS, (tile % BLOCKS) * 4
        mask = known[None, :] & (w < W2)[:, None] & (tile < TILES)
        p = _middle(x, image, top, w, channel, mask, C, H, W)
        lt, md, rt = _row(gradient, image, top - 1, w, channel, mask, C, H, W)
        a = lt * t0 + md * t1 + rt * t2
        s8, s7, s6 = _added(s8, s7, s6, lt, md, rt, p)
        q = _middle(x, image, top + 1, w, channel, mask, C, H, W)
        lt, md, rt = _row(gradient, image, top, w, channel, mask, C, H, W)
        a += lt * v0 + md * v1 + rt * v2
        b = lt * t0 + md * t1 + rt * t2
        s5, s4, s3 = _added(s5, s4, s3, lt, md, rt, p)
        s8, s7, s6 = _added(s8, s7, s6, lt, md, rt, q)
        o = _middle(x, image, top + 2, w, channel, mask, C, H, W)
        lt, md, rt = _row(gradient, image, top + 1, w, channel, mask, C, H, W)
        a += lt * u0 + md * u1 + rt * u2
        b += lt * v0 + md * v1 + rt * v2
        c = lt * t0 + md * t1 + rt * t2
        s2, s1, s0 = _added(s2, s1, s0, lt, md, rt, p)
        s5, s4, s3 = _added(s5, s4, s3, lt, md, rt, q)
        s8, s7, s6 = _added(s8, s7, s6, lt, md, rt, o)
        _put_sum(to_x, a, other, image, top, w, channel, mask, ADD, C, H, W)
        p = _middle(x, image, top + 3, w, channel, mask, C, H, W)
        lt, md, rt = _row(gradient, image, top + 2, w, channel, mask, C, H, W)
        b += lt * u0 + md * u1 + rt * u2
        c += lt * v0 + md * v1 + rt * v2
        d = lt * t0 + md * t1 + rt * t2
        s2, s1, s0 = _added(s2, s1, s0, lt, md, rt, q)
        s5, s4, s3 = _added(s5, s4, s3, lt, md, rt, o)
        s8, s7, s6 = _added(s8, s7, s6, lt, md, rt, p)
        _put_sum(to_x, b, other, image, top + 1, w, channel, mask, ADD, C, H, W)
        lt, md, rt = _row(gradient, image, top + 3, w, channel, mask, C, H, W)
        c += lt * u0 + md * u1 + rt * u2
        d += lt * v0 + md * v1 + rt * v2
        s2, s1, s0 = _added(s2, s1, s0, lt, md, rt, o)
        s5, s4, s3 = _added(s5, s4, s3, lt, md, rt, p)
        _put_sum(to_x, c, other, image, top + 2, w, channel, mask, ADD, C, H, W)
        lt, md, rt = _row(gradient, image, top + 4, w, channel, mask, C, H, W)
        d += lt * u0 + md * u1 + rt * u2
        s2, s1, s0 = _added(s2, s1, s0, lt, md, rt, p)
        _put_sum(to_x, d, other, image, top + 3, w, channel, mask, ADD, C, H, W)
    target = to_weight + (tl.program_id(0) * C + channel) * 9
    _put_sums(target, s0, s1, s2, known)
    _put_sums(target + 3, s3, s4, s5, known)
    _put_sums(target + 6, s6, s7, s8, known)


@triton.jit
def _sum_kernel(parts, total, G, columns, N: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr):
    """The sum over G programs of what each found."""
    column = tl.program_id(0) * CH + tl.arange(0, CH)
    found = tl.zeros([N, CH], dtype=tl.float32)
    for turn in range(TURNS):
        row = turn * N + tl.arange(0, N)
        mask = (row < G)[:, None] & (column < columns)[None, :]
        found += tl.load(parts + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(total + column, tl.sum(found, 0), mask=column < columns)


def _cut(x: Tensor, config: LaunchConfig) -> tuple[dict[str, int | None], tuple[int, int]]:
    """How the images are cut among programs: the constants of a kernel, and its grid."""
    images, channels, height, width = x.shape
    padded, blocks = triton.next_power_of_2(width), triton.cdiv(height, ROWS)
    part = min(triton.next_power_of_2(channels), max(config.numbers // padded, 8))
    tiles, parts = images * blocks, triton.cdiv(channels, part)
    programs = min(tiles, max(1, MULTIPROCESSORS * config.programs_per_processor // parts))
    constants = {
        "C": channels, "H": height, "W": width, "W2": padded, "CH": part, "BLOCKS": blocks, "TILES": tiles,
        "TURNS": triton.cdiv(tiles, programs), **config.options,
    }  # fmt: skip
    return constants, (programs, parts)


def summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of float32 parts, in the same order whenever it is asked for, as `dtype`."""
    total, programs = parts.new_empty(parts.shape[1:], dtype=dtype), len(parts)
    columns, height = (16, 64) if total.numel() < 4096 else (64, 32)
    _sum_kernel[(triton.cdiv(total.numel(), columns),)](
        parts, total, programs, total.numel(), N=height, CH=columns, TURNS=triton.cdiv(programs, height),
        num_warps=WARPS,
    )  # fmt: skip
    return total


@torch.library.custom_op("lowrank::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise 3 x 3 convolution with stride 1 and padding 1: (B, C, H, W) -> the same, in x's dtype, channels-last.

    Args:
        x: at most `MAX_WIDTH` wide and of `lowrank.kernels.dispatch.MAX_ENTRIES` entries.
        weight: (C, 1, 3, 3), float32.
    """
    x, out = x.contiguous(memory_format=torch.channels_last), _like(x, weight)
    constants, grid = _cut(x, forward_config(x.shape[3]))
    _forward_kernel[grid](x, weight.contiguous(), out, **constants)
    return out


@depthwise.register_fake
def _like(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("lowrank::depthwise_backward", mutates_args=())
def depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of `depthwise`'s x, with another of its gradients added where one is given, and weight."""
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    constants, grid = _cut(x, backward_config(x.shape[3]))
    to_x, parts = torch.empty_like(x), x.new_empty((grid[0], *weight.shape), dtype=torch.float32)
    added = to_x if other is None else other.contiguous(memory_format=torch.channels_last)
    _backward_kernel[grid](
        gradient, x, weight.contiguous(), added, to_x, parts, **constants, ADD=other is not None
    )  # fmt: skip
    return to_x, summed(parts, torch.float32)


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _like(x, weight), torch.empty(weight.shape, device=weight.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = depthwise_backward(gradient, *ctx.saved_tensors)
    return found


depthwise.register_autograd(_gradients, setup_context=_keep)
