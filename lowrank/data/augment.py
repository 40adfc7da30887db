"""Replayable random views of images, for a whole batch at once on any device.

Shapes: B views, N stored images, H height, W width, C channels. Images are stored as uint8 (N, H, W, C); views are
float (B, C, H, W) with channels-last strides. The numbers of a view depend on (view seed, epoch or cache epoch,
global image index) alone, so any batch replays any view. A view is: shift, then flip, then cutout, then normalisation;
whatever a shift or a cutout uncovers is exactly zero after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.data.counter_rng import Stream, below
from lowrank.data.settings import AugmentationSettings
from lowrank.kernels.dispatch import load_kernels


class Normaliser(NamedTuple):
    """(pixel - offset) * scale takes uint8 pixels to mean 0, deviation 1; both float32 (C,), on the images' device.

    A subtraction followed by a product has no fused form, so compilers cannot change the bits of the result.
    """

    offset: Tensor
    scale: Tensor


class AugmentationDraws(NamedTuple):
    """The random numbers of B views, each int64 (B,)."""

    down: Tensor  # row 0 of the view shows row `down` of the image
    right: Tensor  # likewise for columns, before the flip
    flip: Tensor  # 1: mirrored
    cut_row: Tensor  # centre of the cutout in the view
    cut_column: Tensor

    def part(self, start: int, stop: int) -> AugmentationDraws:
        """The numbers of views start .. stop - 1."""
        return AugmentationDraws(*(number[start:stop] for number in self))


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Normaliser:
    """From per-channel mean and deviation in units of 0..1; makes its tensors on the device without a copy to it."""

    def filled(values: list[float]) -> Tensor:
        return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])

    return Normaliser(filled([255 * value for value in mean]), filled([1 / (255 * value) for value in std]))


def draw_augmentations(
    views: AugmentationSettings, epoch: int, indices: Tensor, height: int, width: int
) -> AugmentationDraws:
    """The numbers of the views of images `indices` (global indices, int64 (B,)) in an epoch or cache epoch."""
    down, right, flip, row, column = Stream(views.seed, epoch, "views").words(indices, 5)
    reach = 2 * views.shift + 1
    return AugmentationDraws(
        down=below(down, reach) - views.shift,
        right=below(right, reach) - views.shift,
        flip=below(flip, 2 if views.flip else 1),
        cut_row=below(row, height),
        cut_column=below(column, width),
    )


def apply_augmentations(
    images: Tensor,
    positions: Tensor,
    numbers: AugmentationDraws,
    cutout: int,
    norm: Normaliser,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The views of images[positions]; no loops over images, no synchronisation, traceable by torch.compile.

    On a GPU one kernel makes them, the same bits.

    Args:
        images: uint8 (N, H, W, C), contiguous.
        positions: int64 (B,), rows of `images`.
        numbers: of the same B views.
        cutout: side of the square in pixels; 0 for none.
        norm: on the device of the images.
        dtype: of the result; the arithmetic is float32.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    if images.is_cuda and not torch.compiler.is_compiling() and (kernels := _kernels(images.device)):
        found: Tensor = kernels.augment_images(images, positions, numbers, cutout, *norm, dtype)
        return found
    _, height, width, channels = images.shape
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    source_row = rows + numbers.down[:, None]  # (B, H)
    mirrored = torch.where(numbers.flip[:, None] == 1, width - 1 - columns, columns)
    source_column = mirrored + numbers.right[:, None]  # (B, W)
    pixel = (positions[:, None] * height + source_row.clamp(0, height - 1))[:, :, None] * width
    pixel = pixel + source_column.clamp(0, width - 1)[:, None, :]
    picked = images.reshape(-1, channels).index_select(0, pixel.reshape(-1))
    keep = _kept(
        (source_row >= 0) & (source_row < height),
        (source_column >= 0) & (source_column < width),
        _in_square(rows, numbers.cut_row, cutout),
        _in_square(columns, numbers.cut_column, cutout),
        channels,
    )
    values = _normalised(picked.view(-1, height, width * channels), norm).mul_(keep)
    return values.view(-1, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def _kernels(device: torch.device) -> ModuleType | None:
    """The same function by Triton, where that can be."""
    return load_kernels("lowrank.kernels.augment", device, "views of images are made without their Triton kernel")


def _in_square(coordinates: Tensor, centre: Tensor, side: int) -> Tensor:
    """Which of `coordinates` (S,) the square around each centre (B,) covers: bool (B, S)."""
    distance = coordinates - centre[:, None] + side // 2
    return (distance >= 0) & (distance < side)


def _kept(inside_row: Tensor, inside_column: Tensor, cut_row: Tensor, cut_column: Tensor, channels: int) -> Tensor:
    """1 where the view shows the image and 0 elsewhere: float32 (B, H, W*C) from bool (B, H) and (B, W)."""

    def outer(row: Tensor, column: Tensor) -> Tensor:
        column = column.to(torch.float32).repeat_interleave(channels, dim=1)
        return row.to(torch.float32)[:, :, None] * column[:, None, :]

    return outer(inside_row, inside_column).sub_(outer(inside_row & cut_row, inside_column & cut_column))


def _normalised(pixels: Tensor, norm: Normaliser) -> Tensor:
    """Float32 of uint8 (B, H, W*C). The rows keep W and C together: long inner loops are several times faster."""
    width = pixels.shape[-1] // norm.offset.shape[0]
    return pixels.to(torch.float32).sub_(norm.offset.repeat(width)).mul_(norm.scale.repeat(width))


def normalise(images: Tensor, norm: Normaliser, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole images without a view: uint8 (B, H, W, C) to (B, C, H, W) with channels-last strides."""
    count, height, width, channels = images.shape
    values = _normalised(images.reshape(count, height, width * channels), norm)
    return values.view(count, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def augment(
    images: Tensor,
    indices: Tensor,
    epoch: int,
    views: AugmentationSettings,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One view of each image: draw_augmentations, then apply_augmentations.

    Args:
        images: uint8 (B, H, W, C).
        indices: the images' global indices, int64 (B,), on the same device.
        epoch: epoch or cache epoch; another one gives other views.
        views: what is drawn.
        mean: per channel, in units of 0..1.
        std: likewise.
        dtype: of the result.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    numbers = draw_augmentations(views, epoch, indices, images.shape[1], images.shape[2])
    positions = torch.arange(images.shape[0], device=images.device)
    return apply_augmentations(
        images, positions, numbers, views.cutout, normaliser(mean, std, images.device), dtype=dtype
    )
