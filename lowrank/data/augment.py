"""Replayable random augmentation of images, for a whole batch at once on any device.

Letters: B augmented images, N stored images, H height, W width, C channels. Images are stored as uint8 (N, H, W, C);
augmented ones are float (B, C, H, W) with channels-last strides. The random numbers of an image depend on (augmentation
seed, epoch, global image index) alone, so any batch replays any image. The order is: shift, flip, cutout,
normalisation. What a shift or a cutout uncovers is exactly zero after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.data.counter_rng import Stream, uniform_below
from lowrank.data.settings import AugmentationSettings
from lowrank.kernels import load_kernels


class Normaliser(NamedTuple):
    """Takes uint8 pixels to mean 0 and deviation 1 by (pixel - offset) * scale.

    A subtraction followed by a product has no fused form, so compilers cannot change the bits of the result.
    """

    offset: Tensor  # float32 (C,), on the images' device
    scale: Tensor  # likewise


class AugmentationDraws(NamedTuple):
    """The random numbers of B augmented images, each int64 (B,)."""

    down: Tensor  # row 0 of the augmented image shows row `down` of the stored one
    right: Tensor  # likewise for columns, before the flip
    flip: Tensor  # 1: mirrored
    cut_row: Tensor  # centre of the cutout in the augmented image
    cut_column: Tensor

    def rows(self, start: int, stop: int) -> AugmentationDraws:
        """Return the numbers of the images start .. stop - 1."""
        return AugmentationDraws(*(number[start:stop] for number in self))


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Normaliser:
    """Make a Normaliser from the mean and deviation of each channel.

    Nothing is copied from the CPU to the device.

    Args:
        mean: of each channel, in units of 0..1.
        std: likewise.
        device: of the images.

    Returns:
        The offset and scale of uint8 pixels.
    """

    def filled(values: list[float]) -> Tensor:
        return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])

    return Normaliser(filled([255 * value for value in mean]), filled([1 / (255 * value) for value in std]))


def draw_augmentations(
    augmentation: AugmentationSettings, epoch: int, indices: Tensor, height: int, width: int
) -> AugmentationDraws:
    """Draw the random numbers of images in an epoch.

    Args:
        augmentation: what is drawn, and the seed.
        epoch: another one gives other draws.
        indices: global indices of the images, int64 (B,).
        height: of the images, in pixels.
        width: likewise.

    Returns:
        The numbers, on the device of `indices`.
    """
    down, right, flip, row, column = Stream(augmentation.seed, epoch, "augmentation").words(indices, 5)
    reach = 2 * augmentation.shift + 1
    return AugmentationDraws(
        down=uniform_below(down, reach) - augmentation.shift,
        right=uniform_below(right, reach) - augmentation.shift,
        flip=uniform_below(flip, 2 if augmentation.flip else 1),
        cut_row=uniform_below(row, height),
        cut_column=uniform_below(column, width),
    )


def apply_augmentations(
    images: Tensor,
    positions: Tensor,
    draws: AugmentationDraws,
    cutout: int,
    norm: Normaliser,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Augment images[positions].

    There is no loop over images and no synchronisation, and torch.compile can trace it. On a GPU one kernel gives the
    same bits.

    Args:
        images: uint8 (N, H, W, C), contiguous.
        positions: int64 (B,), rows of `images`.
        draws: the random numbers of these B images.
        cutout: side of the square in pixels; 0 for none.
        norm: on the device of the images.
        dtype: of the result; the arithmetic is float32.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    if images.is_cuda and not torch.compiler.is_compiling() and (kernels := _kernels(images.device)):
        augmented: Tensor = kernels.augment_images(images, positions, draws, cutout, *norm, dtype)
        return augmented
    _, height, width, channels = images.shape
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    source_row = rows + draws.down[:, None]  # (B, H)
    mirrored = torch.where(draws.flip[:, None] == 1, width - 1 - columns, columns)
    source_column = mirrored + draws.right[:, None]  # (B, W)
    pixel = (positions[:, None] * height + source_row.clamp(0, height - 1))[:, :, None] * width
    pixel = pixel + source_column.clamp(0, width - 1)[:, None, :]
    selected = images.reshape(-1, channels).index_select(0, pixel.reshape(-1))
    mask = _visible(
        (source_row >= 0) & (source_row < height),
        (source_column >= 0) & (source_column < width),
        _in_square(rows, draws.cut_row, cutout),
        _in_square(columns, draws.cut_column, cutout),
        channels,
    )
    values = _normalised(selected.view(-1, height, width * channels), norm).mul_(mask)
    return values.view(-1, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def _kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernel of `apply_augmentations`; None where it does not run."""
    return load_kernels("lowrank.kernels.augment", device, "images are augmented without their Triton kernel")


def _in_square(coordinates: Tensor, centre: Tensor, side: int) -> Tensor:
    """Tell which of `coordinates` (S,) the square around each centre (B,) covers: bool (B, S)."""
    distance = coordinates - centre[:, None] + side // 2
    return (distance >= 0) & (distance < side)


def _visible(inside_row: Tensor, inside_column: Tensor, cut_row: Tensor, cut_column: Tensor, channels: int) -> Tensor:
    """1 where the augmented image shows the stored one, else 0: float32 (B, H, W*C) from bool (B, H) and (B, W)."""

    def outer(row: Tensor, column: Tensor) -> Tensor:
        column = column.to(torch.float32).repeat_interleave(channels, dim=1)
        return row.to(torch.float32)[:, :, None] * column[:, None, :]

    return outer(inside_row, inside_column).sub_(outer(inside_row & cut_row, inside_column & cut_column))


def _normalised(pixels: Tensor, norm: Normaliser) -> Tensor:
    """Normalise uint8 (B, H, W*C) to float32. W and C stay one axis: long inner loops are several times faster."""
    width = pixels.shape[-1] // norm.offset.shape[0]
    return pixels.to(torch.float32).sub_(norm.offset.repeat(width)).mul_(norm.scale.repeat(width))


def normalise(images: Tensor, norm: Normaliser, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise images without augmenting them.

    Args:
        images: uint8 (B, H, W, C).
        norm: on the device of the images.
        dtype: of the result; the arithmetic is float32.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    count, height, width, channels = images.shape
    values = _normalised(images.reshape(count, height, width * channels), norm)
    return values.view(count, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def augment_images(
    images: Tensor,
    indices: Tensor,
    epoch: int,
    augmentation: AugmentationSettings,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Augment each image once: draw_augmentations, then apply_augmentations.

    Args:
        images: uint8 (B, H, W, C).
        indices: the images' global indices, int64 (B,), on the same device.
        epoch: another one gives other random numbers.
        augmentation: what is drawn, and the seed.
        mean: of each channel, in units of 0..1.
        std: likewise.
        dtype: of the result.

    Returns:
        (B, C, H, W) with channels-last strides.
    """
    draws = draw_augmentations(augmentation, epoch, indices, images.shape[1], images.shape[2])
    positions = torch.arange(images.shape[0], device=images.device)
    norm = normaliser(mean, std, images.device)
    return apply_augmentations(images, positions, draws, augmentation.cutout, norm, dtype=dtype)
