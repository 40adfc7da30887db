"""Batches of normalised images on the device, from a set that lives there or is streamed to it.

Both ways give the same bits: order, augmentation and arithmetic are the same, only the place of the uint8 images
differs. Letters: B images of a batch, (C, H, W) the shape of one. Images have channels-last strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.data.augment import AugmentationDraws, Normaliser, apply_augmentations, draw_augmentations, normalise
from lowrank.data.counter_rng import balanced_order, epoch_order
from lowrank.data.dataset import ImageData, Split, SplitName
from lowrank.data.process_shard import UNSHARDED, ProcessShard
from lowrank.data.settings import AugmentationSettings
from lowrank.data.watched_loader import DecoderPool, stream_images
from lowrank.errors import InputError, unknown

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, C, H, W), labels int64 (B,), global indices int64 (B,)

_GPU_VALUES = 2**24
"""Values augmented at a time on an accelerator: small batches are augmented together, to launch fewer kernels."""
_CPU_VALUES = 400_000
"""Likewise on a CPU, where the intermediate tensors of larger pieces fall out of its caches."""
_FEWEST_WORKERS, _MOST_WORKERS = 2, 32
"""Default number of processes that decode, while the trial's own one trains or waits for its device: each holds some
decoded batches, which limits how many are used without being asked for."""


class _BatchOptions(NamedTuple):
    """What all batches of an epoch have in common."""

    device: torch.device
    batch_size: int
    dtype: torch.dtype
    loader_seconds: float
    decoders: DecoderPool | None


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, but got {batch_size}")


def steps_per_epoch(data: ImageData, batch_size: int, drop_last: bool = True) -> int:
    """Count the batches of an epoch of `train_batches`.

    Args:
        data: the set.
        batch_size: images a batch.
        drop_last: leave out an incomplete last batch, unless it is the only one.

    Returns:
        At least 1.

    Raises:
        InputError: `batch_size` is below 1.
    """
    _check_batch_size(batch_size)
    full, remainder = divmod(len(data.train), batch_size)
    return max(1, full + (remainder > 0 and not drop_last))


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
    workers: int | None = None,
    cache_epoch: int | None = None,
    shard: ProcessShard = UNSHARDED,
    balanced: bool = False,
    decoders: DecoderPool | None = None,
) -> Iterator[Batch]:
    """Yield one epoch of the training split, augmented and in random order.

    A pure function of its arguments: batches neither consume nor depend on torch's random state.

    Args:
        data: the set.
        device: of the batches.
        batch_size: images a batch.
        augmentation: what is drawn of each image, and the seed.
        order_seed: of the order of the images.
        epoch: counts from 0; another one gives another order and other augmentations.
        dtype: of the images.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        workers: processes that decode a streamed set; 0 decodes in this one, None takes what the data's settings say.
        cache_epoch: draw the augmentations of this epoch, and take only the order from `epoch`.
        shard: the images of this process; order and augmentations are those of the whole batches.
        balanced: draw each class equally often. An image that comes twice in an epoch is augmented alike.
        decoders: processes of earlier epochs that decode a streamed set, for this one and the next; None starts some
            for this epoch alone.

    Yields:
        Images (B, C, H, W), labels int64 (B,), global indices int64 (B,).

    Raises:
        InputError: `batch_size` is below 1, a batch cannot be cut into equal shards, or an image cannot be read.
        LoaderHungError: no image comes for the data's `loader_seconds`.
    """
    _check_batch_size(batch_size)
    batch_size = min(batch_size, len(data.train))
    options = _BatchOptions(
        torch.device(device), batch_size // shard.count, dtype, data.settings.loader_seconds, decoders
    )
    augmenter = _Augmenter(
        augmentation=augmentation,
        epoch=epoch if cache_epoch is None else cache_epoch,
        norm=data.normaliser(device),
        dtype=dtype,
        values_at_once=_CPU_VALUES if options.device.type == "cpu" else _GPU_VALUES,
    )
    order_device = device if data.resident else "cpu"
    if balanced:
        order = balanced_order(order_seed, epoch, data.train.labels).to(order_device)
    else:
        order = epoch_order(order_seed, epoch, len(data.train), order_device)
    order = shard.of_batches(order[: steps_per_epoch(data, batch_size, drop_last) * batch_size], batch_size)
    if data.resident:
        return _resident_train_batches(data, options, order, augmenter)
    return _streamed_train_batches(data, options, order, augmenter, workers)


def draw_training_images(
    data: ImageData, count: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Draw training images, not augmented, such as those that factors are fitted to.

    Args:
        data: the set.
        count: how many; all where there are fewer.
        seed: of the draw.
        device: where to put them.

    Returns:
        Normalised images (B, C, H, W) and labels int64 (B,).
    """
    positions = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    pixels, labels = data.train.decode(positions), data.train.labels[positions]
    return normalise(pixels.to(device), data.normaliser(device)), labels.to(device)


def eval_batches(
    data: ImageData,
    split: SplitName,
    device: torch.device | str,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    *,
    workers: int | None = None,
    shard: ProcessShard = UNSHARDED,
    decoders: DecoderPool | None = None,
) -> Iterator[Batch]:
    """Yield every image of a split once, in the split's order, without augmentation.

    Args:
        data: the set.
        split: train, val or test.
        device: of the batches.
        batch_size: images a batch; the last one may be smaller.
        dtype: of the images.
        workers: processes that decode a streamed set; 0 decodes in this one, None takes what the data's settings say.
        shard: the images of this process.
        decoders: as for `train_batches`.

    Yields:
        Images (B, C, H, W), labels int64 (B,), global indices int64 (B,).

    Raises:
        InputError: the split is unknown, `batch_size` is below 1, or an image cannot be read.
        LoaderHungError: no image comes for the data's `loader_seconds`.
    """
    _check_batch_size(batch_size)
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    images = data.split(split)
    options = _BatchOptions(torch.device(device), batch_size, dtype, data.settings.loader_seconds, decoders)
    return _eval_batches(data, images, shard.of_range(len(images)), options, workers)


def _eval_batches(
    data: ImageData, split: Split, positions: range, options: _BatchOptions, workers: int | None
) -> Iterator[Batch]:
    norm = data.normaliser(options.device)
    if split.resident:
        images, labels, indices = split.on(options.device)
        for start in positions[:: options.batch_size]:
            rows = slice(start, min(start + options.batch_size, positions.stop))
            yield normalise(images[rows], norm, options.dtype), labels[rows], indices[rows]
        return
    order = torch.arange(positions.start, positions.stop)
    for batch, images in _stream(data, split, order, options, workers):
        labels, indices = _labels_and_indices(split, batch, options.device)
        yield normalise(images, norm, options.dtype), labels, indices


@dataclass(frozen=True, kw_only=True)
class _Augmenter:
    """Augments the images of one epoch on one device."""

    augmentation: AugmentationSettings
    epoch: int
    norm: Normaliser
    dtype: torch.dtype
    values_at_once: int

    def draw(self, indices: Tensor, shape: tuple[int, int, int]) -> AugmentationDraws | None:
        """Draw the random numbers of the images `indices`; None where augmentation changes nothing."""
        if self.augmentation.is_identity:
            return None
        return draw_augmentations(self.augmentation, self.epoch, indices, shape[1], shape[2])

    def augment(self, images: Tensor, positions: Tensor, draws: AugmentationDraws | None) -> Tensor:
        """Augment images[positions] to (B, C, H, W), in pieces that suit the device."""
        count = len(positions)
        piece = max(1, self.values_at_once // images[0].numel())
        if count <= piece:
            return self._augment_piece(images, positions, draws)
        _, height, width, channels = images.shape
        out = torch.empty((count, height, width, channels), dtype=self.dtype, device=images.device)
        out = out.permute(0, 3, 1, 2)
        for start in range(0, count, piece):
            stop = min(start + piece, count)
            out[start:stop] = self._augment_piece(images, positions[start:stop], _rows(draws, start, stop))
        return out

    def _augment_piece(self, images: Tensor, positions: Tensor, draws: AugmentationDraws | None) -> Tensor:
        if draws is None:
            return normalise(images.index_select(0, positions), self.norm, self.dtype)
        return apply_augmentations(images, positions, draws, self.augmentation.cutout, self.norm, dtype=self.dtype)


def _rows(draws: AugmentationDraws | None, start: int, stop: int) -> AugmentationDraws | None:
    return None if draws is None else draws.rows(start, stop)


def _resident_train_batches(
    data: ImageData, options: _BatchOptions, order: Tensor, augmenter: _Augmenter
) -> Iterator[Batch]:
    images, split_labels, split_indices = data.train.on(options.device)
    labels, indices = split_labels[order], split_indices[order]
    draws = augmenter.draw(indices, data.image_shape)
    batches = max(1, augmenter.values_at_once // (options.batch_size * images[0].numel()))  # augmented together
    for begin in range(0, len(order), options.batch_size * batches):
        end = min(begin + options.batch_size * batches, len(order))
        augmented = augmenter.augment(images, order[begin:end], _rows(draws, begin, end))
        for start in range(begin, end, options.batch_size):
            stop = min(start + options.batch_size, end)
            yield augmented[start - begin : stop - begin], labels[start:stop], indices[start:stop]


def _streamed_train_batches(
    data: ImageData, options: _BatchOptions, order: Tensor, augmenter: _Augmenter, workers: int | None
) -> Iterator[Batch]:
    for positions, images in _stream(data, data.train, order, options, workers):
        labels, indices = _labels_and_indices(data.train, positions, options.device)
        rows = torch.arange(len(images), device=options.device)
        yield augmenter.augment(images, rows, augmenter.draw(indices, data.image_shape)), labels, indices


def _stream(
    data: ImageData, split: Split, order: Tensor, options: _BatchOptions, workers: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    pool = options.decoders
    if workers is None:
        workers = _default_workers(pool) if data.settings.workers is None else data.settings.workers
    stream = stream_images if pool is None else pool.stream
    return stream(split, order, options.batch_size, options.device, workers, options.loader_seconds)


def _default_workers(pool: DecoderPool | None) -> int:
    """Return as many as this process's share of the machine has cores; without a trial it has as many as threads."""
    cores = torch.get_num_threads() if pool is None or pool.workers is None else pool.workers
    return min(max(_FEWEST_WORKERS, cores), _MOST_WORKERS)


def _labels_and_indices(split: Split, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return split.labels[positions].to(device), split.indices[positions].to(device)
