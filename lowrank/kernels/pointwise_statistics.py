"""A pointwise map of many channels, the sum with a residual, and the statistics that the norm behind it needs.

Where a map has too many channels to be computed again (`lowrank.kernels.pointwise_batch_norm`), it is written; but its
values are at hand when their sum with the residual and the statistics are due, so that neither reads them back.

Letters: B images, H x W positions, R rows (positions of all images), D in-channels, C out-channels, N rows of a tile,
TURNS tiles of a program, CH out-channels of a program, K in-channels that are multiplied at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.batch_norm import empty_result, to_channels_last
from lowrank.kernels.fused_common import LaunchConfig, launch_grid, merge_statistics, update_statistics


@triton.jit
def _product_kernel(
    x, matrix, residual, out, means, spreads, counts, R,
    D: tl.constexpr, C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CH: tl.constexpr, TURNS: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Compute the map, its sum with the residual, and the statistics of what is stored.

    Tiles have channels first, so that few threads share a channel's sum.
    """
    channel, k = tl.program_id(0) * CH + tl.arange(0, CH), tl.arange(0, K)
    valid = channel < C
    centre, spread = tl.zeros([CH], dtype=tl.float32), tl.zeros([CH], dtype=tl.float32)
    seen = 0.0
    for turn in range(TURNS):
        first = (turn * tl.num_programs(1) + tl.program_id(1)) * N
        row = first + tl.arange(0, N)
        inside = row < R
        values = tl.zeros([CH, N], dtype=tl.float32)
        for start in range(0, D, K):
            some = start + k
            taps = tl.load(
                matrix + channel[:, None] * D + some[None, :], mask=valid[:, None] & (some < D)[None, :], other=0.0
            )  # fmt: skip
            inputs = tl.load(
                x + row[None, :] * D + some[:, None], mask=inside[None, :] & (some < D)[:, None], other=0.0
            )  # fmt: skip
            values = tl.dot(taps, inputs, values, input_precision="ieee")
        offsets, mask = row[None, :] * C + channel[:, None], valid[:, None] & inside[None, :]
        if ADD:
            values += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        stored = values.to(out.dtype.element_ty)
        tl.store(out + offsets, stored, mask=mask)
        count = tl.minimum(tl.maximum(R - first, 0), N).to(tl.float32)
        centre, spread, seen = update_statistics(stored.to(tl.float32), inside[None, :], count, centre, spread, seen)
    target = tl.program_id(1) * C + channel
    tl.store(means + target, centre, mask=valid)
    tl.store(spreads + target, spread, mask=valid)
    tl.store(counts + tl.program_id(1), seen)


def product_config(outs: int) -> LaunchConfig:
    """Return how `_product_kernel` is launched for so many out-channels."""
    return LaunchConfig(128, 128, 8, 3, 1) if outs % 128 == 0 else LaunchConfig(128, 64, 4, 4, 3)


@torch.library.custom_op("lowrank::pointwise_statistics", mutates_args=())
def pointwise_statistics(x: Tensor, matrix: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a pointwise map and add a residual.

    Args:
        x: (B, D, H, W).
        matrix: (C, D), in x's dtype.
        residual: (B, C, H, W); None for none.

    Returns:
        The result (B, C, H, W) in x's dtype, channels-last, and each channel's mean and biased variance, float32 (C,).
    """
    x, matrix = to_channels_last(x), matrix.contiguous()
    (outs, channels), rows = matrix.shape, x.numel() // x.shape[1]
    out, config = empty_result(x, channels=outs), product_config(outs)
    constants, grid = launch_grid(rows, triton.cdiv(outs, config.block_channels), config)
    means, spreads = (torch.empty((grid[1], outs), device=x.device) for _ in range(2))
    counts = torch.empty(grid[1], device=x.device)
    _product_kernel[grid](
        x, matrix, out if residual is None else to_channels_last(residual), out, means, spreads, counts, rows,
        D=channels, C=outs, K=64 if channels % 64 == 0 else 32, CH=config.block_channels, ADD=residual is not None,
        **constants,
    )  # fmt: skip
    return (out, *merge_statistics(means, spreads, counts, rows))


@pointwise_statistics.register_fake
def _(x: Tensor, matrix: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (torch.empty(len(matrix), device=x.device) for _ in range(2))
    return empty_result(x, channels=len(matrix)), mean, variance


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, matrix, residual = inputs
    ctx.adds = residual is not None
    ctx.save_for_backward(x, matrix)


def _backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs, by a library's products.

    The norm that takes the statistics has their part in its gradient, so they pass none back.
    """
    x, matrix = ctx.saved_tensors
    rows, inputs = gradient.permute(0, 2, 3, 1).flatten(0, 2), x.permute(0, 2, 3, 1)
    grad_x = (rows @ matrix).view(inputs.shape).permute(0, 3, 1, 2)
    return grad_x, rows.mT @ inputs.flatten(0, 2), gradient if ctx.adds else None


pointwise_statistics.register_autograd(_backward, setup_context=_save_for_backward)
