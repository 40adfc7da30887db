"""From settings to images: the published parts, the splits, their statistics and their fingerprint."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowrank.data.augment import Normaliser, normaliser
from lowrank.data.reading.image_store import ImageStore
from lowrank.data.reading.source import ImageSource
from lowrank.data.settings import DataSettings, split_name
from lowrank.data.splits import Indices, hold_out, training_part, validation_part
from lowrank.errors import InputError

SplitName = Literal["train", "val", "test"]

STATISTICS_IMAGES = 50_000  # mean and deviation come from at most this many, evenly spaced over the training split
_TEST_FRACTION = 0.2  # where no test set is published
_TEST_SEED = 0  # fixed, so that the test set never changes with `split_seed`
_MEGABYTE = 1_000_000
_KEPT_SETS = 4  # in the cache of a process
_BLOCK = 2048  # images decoded at a time for statistics


class OnDevice(NamedTuple):
    """A split's tensors on one device: images uint8 (n, H, W, C), labels and global indices int64 (n,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """One part of a data set.

    `labels` and `indices` are int64 (n,) on the CPU. An index is global: the image's place among all published images,
    whatever the split; the random numbers of its views depend on it.
    """

    name: str
    labels: Tensor
    indices: Tensor
    resident: bool
    store: ImageStore = field(repr=False)
    _copies: dict[torch.device, OnDevice] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """How many images."""
        return len(self.labels)

    def decode(self, positions: Tensor, threads: int | None = None) -> Tensor:
        """Uint8 (b, H, W, C) of the images at `positions` (int64 (b,), within the split), decoded now.

        Raises:
            InputError: an image cannot be read.
        """
        return torch.from_numpy(self.store.decode(self.indices[positions].numpy(), threads))

    @property
    def images(self) -> Tensor:
        """Uint8 (n, H, W, C) on the CPU, decoded at the first access and kept; resident sets only.

        Raises:
            InputError: an image cannot be read, or the set is streamed.
        """
        return self.on("cpu").images

    @property
    def is_decoded(self) -> bool:
        """Whether the images are in memory."""
        return bool(self._copies)

    def on(self, device: torch.device | str) -> OnDevice:
        """The split on a device, copied once and kept; resident sets only.

        Raises:
            InputError: an image cannot be read, or the set is streamed.
        """
        device = torch.empty(0, device=device).device  # cuda becomes cuda:0
        if device not in self._copies:
            self._copies[device] = self._decoded() if device.type == "cpu" else self._copied(device)
        return self._copies[device]

    def _decoded(self) -> OnDevice:
        if not self.resident:
            raise InputError(
                f"the {self.name} split is over `resident_mb` and streamed; use its `decode`, or raise `resident_mb`"
            )
        images = torch.from_numpy(self.store.decode_whole(self.indices.numpy()))
        self.store.release()
        return OnDevice(images, self.labels, self.indices)

    def _copied(self, device: torch.device) -> OnDevice:
        return OnDevice(*(tensor.to(device) for tensor in self.on("cpu")))


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A data set ready to train on.

    `image_shape` is (C, H, W); `mean` and `std` are per channel in units of 0..1, over the training split (an evenly
    spaced sample of it where it has more than STATISTICS_IMAGES). `fingerprint`: 16 hexadecimal digits over pixels,
    labels, class names and the splits; encoded bytes stand for the pixels of a test split that is decoded later, and
    file names and sizes for those of a streamed set.
    """

    name: str
    settings: DataSettings
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    train: Split
    val: Split
    test: Split
    _normalisers: dict[torch.device, Normaliser] = field(default_factory=dict, repr=False)

    def split(self, name: SplitName) -> Split:
        """The split of that name."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def resident(self) -> bool:
        """Whether the images live decoded on the device; otherwise they are streamed."""
        return self.train.resident

    def normaliser(self, device: torch.device | str) -> Normaliser:
        """Offset and scale of the channels on a device, made once."""
        device = torch.empty(0, device=device).device
        if device not in self._normalisers:
            self._normalisers[device] = normaliser(self.mean, self.std, device)
        return self._normalisers[device]


_CACHE: OrderedDict[tuple[DataSettings, str, str], ImageData] = OrderedDict()


def load_data(settings: DataSettings, data_dir: Path | None = None, download: bool = True) -> ImageData:
    """The data set that `settings` describe; the same object again for the same settings and folder.

    The cache belongs to the process and does not notice files that change; see clear_cache.

    Args:
        settings: which set, and its splits.
        data_dir: where torchvision's files are, or go; by default `data` in the working directory.
        download: whether torchvision may download what is missing.

    Raises:
        InputError: the set is unknown, missing or damaged, or the settings do not fit it; one line that names the
            file, the rule and the choices.
    """
    working = os.getcwd()
    key = (settings, os.path.join(working, data_dir or "data"), working)
    if key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    data = _build(settings, _read(settings, Path(key[1]), download))
    _CACHE[key] = data
    if len(_CACHE) > _KEPT_SETS:
        _CACHE.popitem(last=False)
    return data


def clear_cache() -> None:
    """Forget every data set that this process has loaded."""
    _CACHE.clear()


def _read(settings: DataSettings, data_dir: Path, download: bool) -> ImageSource:
    """Each reader is imported when it is used: torchvision, scikit-learn and pyarrow take seconds."""
    kind, folder = split_name(settings.name)
    if folder is not None:
        if kind == "parquet":
            from lowrank.data.reading.parquet import read_parquet

            return read_parquet(Path(folder), settings.image_size)
        from lowrank.data.reading.image_folder import read_folder

        return read_folder(Path(folder), settings.image_size)
    from lowrank.data.reading.builtin import read_digits, read_torchvision

    if settings.image_size is not None:
        raise InputError(f"`image_size` is for parquet:DIR and folder:DIR, but the data set is {settings.name!r}")
    return read_digits() if kind == "digits" else read_torchvision(kind, data_dir, download)


def _build(settings: DataSettings, catalogue: ImageSource) -> ImageData:
    train, val, test = splits = _splits(settings, catalogue)
    if train.resident:
        for split in (train, val) if settings.train_images else splits:
            split.on("cpu")
    mean, std = _statistics(train)
    return ImageData(
        name=settings.name,
        settings=settings,
        classes=catalogue.classes,
        image_shape=catalogue.store.shape,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(catalogue, splits),
        train=train,
        val=val,
        test=test,
    )


def _splits(settings: DataSettings, catalogue: ImageSource) -> tuple[Split, Split, Split]:
    members = _members(settings, catalogue)
    values = sum(len(indices) for indices in members.values()) * math.prod(catalogue.store.shape)

    def split(name: SplitName) -> Split:
        return Split(
            name=name,
            labels=torch.from_numpy(catalogue.labels[members[name]]),
            indices=torch.from_numpy(members[name]),
            resident=values <= settings.resident_mb * _MEGABYTE,
            store=catalogue.store,
        )

    return split("train"), split("val"), split("test")


def _members(settings: DataSettings, catalogue: ImageSource) -> dict[SplitName, Indices]:
    """Global indices of each split, ascending."""
    labels, train, val, test = catalogue.labels, catalogue.training, catalogue.validation, catalogue.test
    try:
        if test is None:
            train, test = hold_out(labels, train, _TEST_FRACTION, _TEST_SEED, "test split")
        if val is None:
            train, val = hold_out(labels, train, settings.val_fraction, settings.split_seed, "validation split")
        if settings.train_images is not None:
            train = training_part(labels, train, settings.train_images, settings.split_seed)
            val = validation_part(labels, val, settings.train_images, settings.split_seed)
    except InputError as error:
        raise InputError(f"data set {settings.name!r}: {error}") from error
    return {"train": train, "val": val, "test": test}


def _statistics(train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel in units of 0..1, from exact counts of each value; a constant channel has deviation 1."""
    count = min(len(train), STATISTICS_IMAGES)
    sample = torch.arange(count) * len(train) // count
    counts = np.zeros((train.store.shape[0], 256), np.int64)
    for places in sample.split(_BLOCK):
        block = (train.images[places] if train.resident else train.decode(places)).numpy()
        for channel in range(len(counts)):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    pixels, values = int(counts[0].sum()), np.arange(256)
    total, squares = (counts @ values).tolist(), (counts @ values**2).tolist()
    spread = [pixels * square - first * first for first, square in zip(total, squares, strict=True)]
    mean = tuple(first / (255 * pixels) for first in total)
    return mean, tuple(math.sqrt(value) / (255 * pixels) if value else 1.0 for value in spread)


def _fingerprint(catalogue: ImageSource, splits: tuple[Split, ...]) -> str:
    sha = hashlib.sha256(repr((catalogue.classes, catalogue.store.shape)).encode())
    for split in splits:
        sha.update(f"{split.name}:{len(split)};".encode())
        sha.update(split.indices.numpy().data)
        sha.update(split.labels.numpy().data)
        if split.is_decoded:
            sha.update(split.images.numpy().data)
        elif split.resident:
            catalogue.store.hash_contents(split.indices.numpy(), sha)
        else:
            catalogue.store.hash_files(split.indices.numpy(), sha)
    if splits[0].resident:
        catalogue.store.release()
    return sha.hexdigest()[:16]
