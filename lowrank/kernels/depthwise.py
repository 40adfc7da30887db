"""Depthwise 3 x 3 convolution for channels-last images: one kernel forward, one for both gradients.

The step of a small student is bound by memory traffic. A program goes down a strip of an image row by row: each row is
read once for the three rows of results that it belongs to, and the gradient once for both results going back.

Letters: C channels, H x W positions, W2 the power of 2 that holds W, CH channels of a program, S rows of a strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HIGHEST = 32  # rows of a strip; two more are read
WIDEST = 64  # images that one row's part can hold
LARGEST = 2**31 - 1  # entries of a tensor, which the kernels count in 32 bits
PROCESSORS = 132  # of an H100 or H200
WARPS = 4


@triton.jit
def _row(x, place, row, last, mask, C: tl.constexpr, W: tl.constexpr):
    """Row `row` of an image where `mask` says so, zeros elsewhere and outside of 0 .. last."""
    return tl.load(x + place + row * (W * C), mask=mask & (row >= 0) & (row <= last), other=0.0)


@triton.jit
def _kernel_row(weight, channel, known, row: tl.constexpr):
    """Three entries of each channel's kernel, each (1, CH)."""
    taps = weight + channel * 9 + 3 * row
    first, second = tl.load(taps, mask=known, other=0.0), tl.load(taps + 1, mask=known, other=0.0)
    return first[None, :], second[None, :], tl.load(taps + 2, mask=known, other=0.0)[None, :]


@triton.jit
def _strip(w, channel, tile, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr,
           BLOCKS: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Where a strip's image begins for each column and channel, its first row and the last that it needs, and where a
    row shifted by one to the right, as it is, and by one to the left is inside."""
    known = ((channel < C) & (tile < TILES))[None, :]
    place = (tile // BLOCKS) * (H * W * C) + w[:, None] * C + channel[None, :]
    left, middle, right = ((w > 0) & (w < W))[:, None], (w < W)[:, None], (w < W - 1)[:, None]
    top = (tile % BLOCKS) * S
    return place, top, tl.minimum(top + S, H - 1), left & known, middle & known, right & known


@triton.jit
def _forward_kernel(
    x, weight, out,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, S: tl.constexpr,
    BLOCKS: tl.constexpr, TILES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Down a strip: each row is read once, for the three results that it belongs to. Three rows are under way while one
    is used; its shifts come from the cache that it has been read into."""
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    u0, u1, u2 = _kernel_row(weight, channel, channel < C, 0)
    v0, v1, v2 = _kernel_row(weight, channel, channel < C, 1)
    t0, t1, t2 = _kernel_row(weight, channel, channel < C, 2)
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        place, top, last, left, middle, right = _strip(w, channel, tile, C, H, W, S, BLOCKS, TILES)
        md = _row(x, place, top - 1, last, middle, C, W)
        m1 = _row(x, place, top, last, middle, C, W)
        m2 = _row(x, place, top + 1, last, middle, C, W)
        lt, rt = _row(x, place - C, top - 1, last, left, C, W), _row(x, place + C, top - 1, last, right, C, W)
        above = tl.zeros([W2, CH], dtype=tl.float32)
        here = tl.zeros([W2, CH], dtype=tl.float32)
        for step in range(S + 2):
            row = top - 1 + step
            p, q, r = lt.to(tl.float32), md.to(tl.float32), rt.to(tl.float32)
            md, m1, m2 = m1, m2, _row(x, place, row + 3, last, middle, C, W)
            lt, rt = _row(x, place - C, row + 1, last, left, C, W), _row(x, place + C, row + 1, last, right, C, W)
            above += p * t0 + q * t1 + r * t2
            mask = middle & (step >= 2) & (row <= H)
            tl.store(out + place + (row - 1) * (W * C), above.to(out.dtype.element_ty), mask=mask)
            above = here + p * v0 + q * v1 + r * v2
            here = p * u0 + q * u1 + r * u2


@triton.jit
def _added(first, second, third, lt, md, rt, values):
    """Three sums, with the products of a row's shifts and `values` added."""
    values = values.to(tl.float32)
    return first + lt * values, second + md * values, third + rt * values


@triton.jit
def _put_sums(target, first, second, third, known):
    tl.store(target, tl.sum(first, 0), known)
    tl.store(target + 1, tl.sum(second, 0), known)
    tl.store(target + 2, tl.sum(third, 0), known)


@triton.jit
def _backward_kernel(
    gradient, x, weight, to_x, to_weight,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, W2: tl.constexpr, CH: tl.constexpr, S: tl.constexpr,
    BLOCKS: tl.constexpr, TILES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Down a strip, likewise by rows of the gradient; each program has its own sums of the weight's gradient."""
    channel, w = tl.program_id(1) * CH + tl.arange(0, CH), tl.arange(0, W2)
    known = channel < C
    # What is a left neighbour going forward is a right one on the way back
    u2, u1, u0 = _kernel_row(weight, channel, known, 0)
    v2, v1, v0 = _kernel_row(weight, channel, known, 1)
    t2, t1, t0 = _kernel_row(weight, channel, known, 2)
    s0 = tl.zeros([W2, CH], dtype=tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8 = s0, s0, s0, s0, s0, s0, s0, s0  # each has its own after a row
    for turn in range(TURNS):
        tile = turn * tl.num_programs(0) + tl.program_id(0)
        place, top, last, left, middle, right = _strip(w, channel, tile, C, H, W, S, BLOCKS, TILES)
        end = tl.minimum(top + S, H) - 1  # of the strip's own rows
        md = _row(gradient, place, top - 1, last, middle, C, W)
        m1 = _row(gradient, place, top, last, middle, C, W)
        x1 = _row(x, place, top, end, middle, C, W)
        m2 = _row(gradient, place, top + 1, last, middle, C, W)
        x2 = _row(x, place, top + 1, end, middle, C, W)
        lt = _row(gradient, place - C, top - 1, last, left, C, W)
        rt = _row(gradient, place + C, top - 1, last, right, C, W)
        # Not one for both: what a loop hands on as it was handed in is taken for a constant
        over = tl.zeros([W2, CH], dtype=x.dtype.element_ty)
        level = tl.zeros([W2, CH], dtype=x.dtype.element_ty)
        above = tl.zeros([W2, CH], dtype=tl.float32)
        here = tl.zeros([W2, CH], dtype=tl.float32)
        for step in range(S + 2):
            row = top - 1 + step
            p, q, r = lt.to(tl.float32), md.to(tl.float32), rt.to(tl.float32)
            md, m1, m2 = m1, m2, _row(gradient, place, row + 3, last, middle, C, W)
            below, x1, x2 = x1, x2, _row(x, place, row + 3, end, middle, C, W)
            lt = _row(gradient, place - C, row + 1, last, left, C, W)
            rt = _row(gradient, place + C, row + 1, last, right, C, W)
            above += p * u0 + q * u1 + r * u2
            mask = middle & (step >= 2) & (row <= H)
            tl.store(to_x + place + (row - 1) * (W * C), above.to(to_x.dtype.element_ty), mask=mask)
            above = here + p * v0 + q * v1 + r * v2
            here = p * t0 + q * t1 + r * t2
            s8, s7, s6 = _added(s8, s7, s6, p, q, r, below)
            s5, s4, s3 = _added(s5, s4, s3, p, q, r, level)
            s2, s1, s0 = _added(s2, s1, s0, p, q, r, over)
            over, level = level, below
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


@dataclass(frozen=True)
class Form:
    """How a kernel's work is cut, and what each program may use."""

    numbers: int  # in a row's part of a program
    warps: int
    at_once: int  # programs of a processor


FORWARD, BACKWARD = Form(1024, 8, 3), Form(512, 4, 4)


def _cut(x: Tensor, form: Form) -> tuple[dict[str, int], tuple[int, int]]:
    """How the images are cut into strips of whole rows: the constants of a kernel, and its grid."""
    images, channels, height, width = x.shape
    padded, strip = triton.next_power_of_2(width), min(height, HIGHEST)
    part = min(triton.next_power_of_2(channels), max(form.numbers // padded, 8))
    blocks, parts = triton.cdiv(height, strip), triton.cdiv(channels, part)
    tiles = images * blocks
    programs = min(tiles, max(1, PROCESSORS * form.at_once // parts))
    constants = {
        "C": channels, "H": height, "W": width, "W2": padded, "CH": part, "S": strip, "BLOCKS": blocks, "TILES": tiles,
        "TURNS": triton.cdiv(tiles, programs), "num_warps": form.warps,
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
        x: at most `WIDEST` wide and of `LARGEST` entries.
        weight: (C, 1, 3, 3), float32.
    """
    x, out = x.contiguous(memory_format=torch.channels_last), _like(x, weight)
    constants, grid = _cut(x, FORWARD)
    _forward_kernel[grid](x, weight.contiguous(), out, **constants)
    return out


@depthwise.register_fake
def _like(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("lowrank::depthwise_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `depthwise`'s x and weight."""
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    constants, grid = _cut(x, BACKWARD)
    to_x, parts = torch.empty_like(x), x.new_empty((grid[0], *weight.shape), dtype=torch.float32)
    _backward_kernel[grid](gradient, x, weight.contiguous(), to_x, parts, **constants)
    return to_x, summed(parts, torch.float32)


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x, weight), torch.empty(weight.shape, device=weight.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = depthwise_backward(gradient, *ctx.saved_tensors)
    return found


depthwise.register_autograd(_gradients, setup_context=_keep)
