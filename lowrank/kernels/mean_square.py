"""Where a tap is active, for channels-last images: the mean over channels of the square, and its gradient.

The gradient is the tap times a factor of each position. Where a depthwise convolution reads the tap too, its backward
kernel adds that (lowrank.kernels.fx_gradient_pass), since it has the tap at hand.

Letters: B images, C channels, H x W positions, R positions of all images, N of a tile, CH the power of 2 that holds C.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowrank.kernels.batch_norm import to_channels_last

TILE = 4096  # numbers of a program
WARPS = 4
MAX_CHANNELS = 4096  # of a program, which has all channels of a position


@triton.jit
def _mean_square_kernel(x, out, R, C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr):
    row, channel = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, CH)
    mask = (row < R)[:, None] & (channel < C)[None, :]
    values = tl.load(x + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(values * values, 1) / C, mask=row < R)


@triton.jit
def _scale_kernel(x, factors, out, R, C: tl.constexpr, N: tl.constexpr, CH: tl.constexpr):
    row, channel = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, CH)
    mask = (row < R)[:, None] & (channel < C)[None, :]
    offsets = row[:, None] * C + channel[None, :]
    values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    values *= tl.load(factors + row, mask=row < R, other=0.0)[:, None]
    tl.store(out + offsets, values.to(out.dtype.element_ty), mask=mask)


def _launch(x: Tensor) -> tuple[dict[str, int], tuple[int]]:
    """Return the constants of both kernels, and their grid."""
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    padded = triton.next_power_of_2(channels)
    height = max(1, TILE // padded)
    return {"C": channels, "N": height, "CH": padded, "num_warps": WARPS}, (triton.cdiv(rows, height),)


@torch.library.custom_op("lowrank::mean_square", mutates_args=())
def mean_square(x: Tensor) -> Tensor:
    """Compute the mean over channels of the square.

    Args:
        x: (B, C, H, W), of at most MAX_CHANNELS channels.

    Returns:
        float32 (B, H, W).
    """
    x = to_channels_last(x)
    images, channels, height, width = x.shape
    out, (constants, grid) = torch.empty((images, height, width), device=x.device), _launch(x)
    _mean_square_kernel[grid](x, out, x.numel() // channels, **constants)
    return out


@mean_square.register_fake
def _(x: Tensor) -> Tensor:
    images, _, height, width = x.shape
    return torch.empty((images, height, width), device=x.device)


@torch.library.custom_op("lowrank::scale_positions", mutates_args=())
def scale_positions(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply all channels of a position by its factor.

    Args:
        x: (B, C, H, W), of at most MAX_CHANNELS channels.
        factors: float32 (B, H, W).

    Returns:
        (B, C, H, W) in x's dtype, channels-last.
    """
    x = to_channels_last(x)
    out, (constants, grid) = torch.empty_like(x), _launch(x)
    _scale_kernel[grid](x, factors.contiguous(), out, x.numel() // x.shape[1], **constants)
    return out


@scale_positions.register_fake
def _(x: Tensor, factors: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    result: Tensor = scale_positions(x, gradient * (2 / x.shape[1]))
    return result


mean_square.register_autograd(_backward, setup_context=_save_for_backward)
