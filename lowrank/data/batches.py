"""Batches of normalised images on the device, from a set that lives there or is streamed to it.

Both ways give the same bits: the order, the views and the arithmetic are the same, only where the uint8 images come
from differs. B is the batch size, (C, H, W) the image shape; images come with channels-last strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.data.augment import AugmentationDraws, Normaliser, apply_augmentations, draw_augmentations, normalise
from lowrank.data.counter_rng import epoch_order
from lowrank.data.dataset import ImageData, Split, SplitName
from lowrank.data.process_shard import UNSHARDED, ProcessShard
from lowrank.data.settings import AugmentationSettings
from lowrank.data.watched_loader import stream_images
from lowrank.errors import InputError, unknown

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, C, H, W), labels int64 (B,), global indices int64 (B,)

_GPU_VALUES = 2**24
"""Values made at a time on an accelerator: small batches are made together and cut apart, to launch fewer kernels."""
_CPU_VALUES = 400_000
"""Likewise on a CPU, where the intermediate tensors of larger pieces fall out of its caches."""


class _Spec(NamedTuple):
    """What is asked of every batch."""

    device: torch.device
    batch_size: int
    dtype: torch.dtype
    patience: float  # seconds


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, but got {batch_size}")


def steps_per_epoch(data: ImageData, batch_size: int, drop_last: bool = True) -> int:
    """How many batches train_batches gives; at least 1.

    Raises:
        InputError: `batch_size` is below 1.
    """
    _check_batch_size(batch_size)
    whole, rest = divmod(len(data.train), batch_size)
    return max(1, whole + (rest > 0 and not drop_last))


def train_batches(
    data: ImageData,
    device: torch.device | str,
    batch_size: int,
    *,
    augmentation: AugmentationSettings,
    order_seed: int,
    epoch: int,
    dtype: torch.dtype = torch.float32,
    drop_last: bool = True,
    workers: int = 2,
    cache_epoch: int | None = None,
    shard: ProcessShard = UNSHARDED,
) -> Iterator[Batch]:
    """One epoch of random views of the training split, in random order.

    A pure function of its arguments: batches neither consume nor depend on torch's random state.

    Args:
        data: the set.
        device: where the batches are wanted.
        batch_size: images a batch.
        augmentation: what is drawn of each image, and the seed of it.
        order_seed: of the order of the images.
        epoch: counts from 0; another one gives another order and other views.
        dtype: of the images.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        workers: processes that decode a streamed set; 0 decodes in this one.
        cache_epoch: the number that views are drawn with instead of the epoch, which then sets the order alone.
        shard: the slice of every batch that this process takes; images, order and views are those of the whole.

    Raises:
        InputError: `batch_size` is below 1, a batch cannot be cut into equal slices, or an image cannot be read.
        LoaderHungError: no image comes for the data's `loader_seconds`.
    """
    _check_batch_size(batch_size)
    batch_size = min(batch_size, len(data.train))
    spec = _Spec(torch.device(device), batch_size // shard.count, dtype, data.settings.loader_seconds)
    maker = _Maker(
        views=augmentation,
        cache_epoch=epoch if cache_epoch is None else cache_epoch,
        norm=data.normaliser(device),
        dtype=dtype,
        values_at_once=_CPU_VALUES if spec.device.type == "cpu" else _GPU_VALUES,
    )
    order = epoch_order(order_seed, epoch, len(data.train), device if data.resident else "cpu")
    order = shard.of_batches(order[: steps_per_epoch(data, batch_size, drop_last) * batch_size], batch_size)
    if data.resident:
        return _resident_views(data, spec, order, maker)
    return _streamed_views(data, spec, order, maker, workers)


def eval_batches(
    data: ImageData,
    split: SplitName,
    device: torch.device | str,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    *,
    workers: int = 2,
    shard: ProcessShard = UNSHARDED,
) -> Iterator[Batch]:
    """Every image of a split once, in the split's order, without views; the last batch may be smaller.

    Args:
        data: the set.
        split: train, val or test.
        device: where the batches are wanted.
        batch_size: images a batch.
        dtype: of the images.
        workers: processes that decode a streamed set; 0 decodes in this one.
        shard: the slice of the split that this process takes.

    Raises:
        InputError: the split is unknown, `batch_size` is below 1, or an image cannot be read.
        LoaderHungError: no image comes for the data's `loader_seconds`.
    """
    _check_batch_size(batch_size)
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    wanted = data.split(split)
    spec = _Spec(torch.device(device), batch_size, dtype, data.settings.loader_seconds)
    return _plain(data, wanted, shard.of_range(len(wanted)), spec, workers)


def _plain(data: ImageData, split: Split, wanted: range, spec: _Spec, workers: int) -> Iterator[Batch]:
    norm = data.normaliser(spec.device)
    if split.resident:
        images, labels, indices = split.on(spec.device)
        for start in wanted[:: spec.batch_size]:
            part = slice(start, min(start + spec.batch_size, wanted.stop))
            yield normalise(images[part], norm, spec.dtype), labels[part], indices[part]
        return
    for positions, images in stream_images(
        split, torch.arange(wanted.start, wanted.stop), spec.batch_size, spec.device, workers, spec.patience
    ):
        labels, indices = _picked(split, positions, spec.device)
        yield normalise(images, norm, spec.dtype), labels, indices


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Makes the views of one epoch on one device."""

    views: AugmentationSettings
    cache_epoch: int
    norm: Normaliser
    dtype: torch.dtype
    values_at_once: int

    def numbers(self, indices: Tensor, shape: tuple[int, int, int]) -> AugmentationDraws | None:
        """Of the images `indices`; None where a view is the image itself."""
        return (
            None
            if self.views.is_identity
            else draw_augmentations(self.views, self.cache_epoch, indices, shape[1], shape[2])
        )

    def make(self, images: Tensor, positions: Tensor, numbers: AugmentationDraws | None) -> Tensor:
        """Views of images[positions], (B, C, H, W), in pieces that suit the device."""
        count = len(positions)
        size = max(1, self.values_at_once // images[0].numel())
        if count <= size:
            return self._piece(images, positions, numbers)
        _, height, width, channels = images.shape
        made = torch.empty((count, height, width, channels), dtype=self.dtype, device=images.device)
        made = made.permute(0, 3, 1, 2)
        for start in range(0, count, size):
            stop = min(start + size, count)
            part = None if numbers is None else numbers.part(start, stop)
            made[start:stop] = self._piece(images, positions[start:stop], part)
        return made

    def _piece(self, images: Tensor, positions: Tensor, numbers: AugmentationDraws | None) -> Tensor:
        if numbers is None:
            return normalise(images.index_select(0, positions), self.norm, self.dtype)
        return apply_augmentations(images, positions, numbers, self.views.cutout, self.norm, dtype=self.dtype)


def _resident_views(data: ImageData, spec: _Spec, order: Tensor, maker: _Maker) -> Iterator[Batch]:
    images, every_label, every_index = data.train.on(spec.device)
    labels, indices = every_label[order], every_index[order]
    numbers = maker.numbers(indices, data.image_shape)
    together = spec.batch_size * max(1, maker.values_at_once // (spec.batch_size * images[0].numel()))
    for begin in range(0, len(order), together):
        end = min(begin + together, len(order))
        made = maker.make(images, order[begin:end], None if numbers is None else numbers.part(begin, end))
        for start in range(begin, end, spec.batch_size):
            stop = min(start + spec.batch_size, end)
            yield made[start - begin : stop - begin], labels[start:stop], indices[start:stop]


def _streamed_views(data: ImageData, spec: _Spec, order: Tensor, maker: _Maker, workers: int) -> Iterator[Batch]:
    for positions, images in stream_images(data.train, order, spec.batch_size, spec.device, workers, spec.patience):
        labels, indices = _picked(data.train, positions, spec.device)
        rows = torch.arange(len(images), device=spec.device)
        yield maker.make(images, rows, maker.numbers(indices, data.image_shape)), labels, indices


def _picked(split: Split, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return split.labels[positions].to(device), split.indices[positions].to(device)
