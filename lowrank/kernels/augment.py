"""Views of images made in one pass: what `lowrank.data.augment.apply_augmentations` says, to the bit.

Letters: B views, H x W positions, C channels, N values of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES, WARPS = 1024, 4  # of a program


@triton.jit
def _views_kernel(
    images, positions, down, right, flip, cut_row, cut_column, offset, scale, out, total,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CUT: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    value = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    known = value < total
    channel, column, row, view = value % C, (value // C) % W, (value // (C * W)) % H, value // (C * W * H)
    mirrored = tl.where(tl.load(flip + view, mask=known, other=0) == 1, W - 1 - column, column)
    from_row = row + tl.load(down + view, mask=known, other=0)
    from_column = mirrored + tl.load(right + view, mask=known, other=0)
    keep = (from_row >= 0) & (from_row < H) & (from_column >= 0) & (from_column < W)
    below = row - tl.load(cut_row + view, mask=known, other=0) + CUT // 2
    beyond = column - tl.load(cut_column + view, mask=known, other=0) + CUT // 2
    keep &= (below < 0) | (below >= CUT) | (beyond < 0) | (beyond >= CUT)
    from_row = tl.minimum(tl.maximum(from_row, 0), H - 1)
    from_column = tl.minimum(tl.maximum(from_column, 0), W - 1)
    image = tl.load(positions + view, mask=known, other=0)
    pixel = tl.load(images + ((image * H + from_row) * W + from_column) * C + channel, mask=known, other=0)
    found = (pixel.to(tl.float32) - tl.load(offset + channel)) * tl.load(scale + channel)
    found = found * tl.where(keep, 1.0, 0.0)  # as a product, which leaves the sign of zeros as it is without a kernel
    tl.store(out + value, found.to(out.dtype.element_ty), mask=known)


def augment_images(
    images: Tensor, positions: Tensor, numbers: tuple[Tensor, ...], cutout: int, offset: Tensor, scale: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """`apply_augmentations` of uint8 images (N, H, W, C) on a GPU; `numbers` are a `AugmentationDraws`."""
    height, width, channels = images.shape[1:]
    out = torch.empty((len(positions), height, width, channels), dtype=dtype, device=images.device)
    given = [each.contiguous() for each in (images, positions, *numbers, offset, scale)]
    with torch.cuda.device_of(out):
        _views_kernel[(triton.cdiv(out.numel(), VALUES),)](
            *given, out, out.numel(), H=height, W=width, C=channels, CUT=cutout, N=VALUES, num_warps=WARPS
        )
    return out.permute(0, 3, 1, 2)


def try_out(device: torch.device) -> None:
    """Makes one view; raises what Triton raises where it cannot compile."""
    none, one = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, device=device)
    augment_images(none.to(torch.uint8).view(1, 1, 1, 1), none, (none,) * 5, 0, one, one, torch.float32)
