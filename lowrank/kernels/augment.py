"""Augmented images in one pass, equal to those of `lowrank.data.augment.apply_augmentations` to the bit.

Letters: B augmented images, H x W positions, C channels, N values of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES, WARPS = 1024, 4  # of a program


@triton.jit
def _augment_kernel(
    images, positions, down, right, flip, cut_row, cut_column, offset, scale, out, total,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CUT: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    value = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    valid = value < total
    channel, column, row, view = value % C, (value // C) % W, (value // (C * W)) % H, value // (C * W * H)
    mirrored = tl.where(tl.load(flip + view, mask=valid, other=0) == 1, W - 1 - column, column)
    from_row = row + tl.load(down + view, mask=valid, other=0)
    from_column = mirrored + tl.load(right + view, mask=valid, other=0)
    keep = (from_row >= 0) & (from_row < H) & (from_column >= 0) & (from_column < W)
    below = row - tl.load(cut_row + view, mask=valid, other=0) + CUT // 2
    beyond = column - tl.load(cut_column + view, mask=valid, other=0) + CUT // 2
    keep &= (below < 0) | (below >= CUT) | (beyond < 0) | (beyond >= CUT)
    from_row = tl.minimum(tl.maximum(from_row, 0), H - 1)
    from_column = tl.minimum(tl.maximum(from_column, 0), W - 1)
    image = tl.load(positions + view, mask=valid, other=0)
    pixel = tl.load(images + ((image * H + from_row) * W + from_column) * C + channel, mask=valid, other=0)
    normalised = (pixel.to(tl.float32) - tl.load(offset + channel)) * tl.load(scale + channel)
    # A product, as without the kernel: it keeps the sign of zeros
    normalised = normalised * tl.where(keep, 1.0, 0.0)
    tl.store(out + value, normalised.to(out.dtype.element_ty), mask=valid)


def augment_images(
    images: Tensor, positions: Tensor, numbers: tuple[Tensor, ...], cutout: int, offset: Tensor, scale: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Augment uint8 images on a GPU, as `lowrank.data.augment.apply_augmentations` does.

    Args:
        images: uint8 (number of images, H, W, C).
        positions: of the B images to augment, int64 (B,).
        numbers: an `AugmentationDraws`: shifts down and right, flips, row and column of the square, each (B,).
        cutout: side of the square that is cut out, in pixels; 0 for none.
        offset: subtracted from each channel, float32 (C,).
        scale: multiplies each channel, float32 (C,).
        dtype: of the result.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    height, width, channels = images.shape[1:]
    out = torch.empty((len(positions), height, width, channels), dtype=dtype, device=images.device)
    arguments = [tensor.contiguous() for tensor in (images, positions, *numbers, offset, scale)]
    with torch.cuda.device_of(out):
        _augment_kernel[(triton.cdiv(out.numel(), VALUES),)](
            *arguments, out, out.numel(), H=height, W=width, C=channels, CUT=cutout, N=VALUES, num_warps=WARPS
        )
    return out.permute(0, 3, 1, 2)


def try_out(device: torch.device) -> None:
    """Augment one pixel; raises what Triton raises where it cannot compile."""
    zero, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, device=device)
    augment_images(zero.to(torch.uint8).view(1, 1, 1, 1), zero, (zero,) * 5, 0, one, one, torch.float32)
