"""Loads a data set by its settings: splits, statistics of the channels, and a fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowrank.data.augment import Normaliser, normaliser
from lowrank.data.decoder_process import decode_all
from lowrank.data.reading.image_codec import DECODER_VERSION
from lowrank.data.reading.image_scan import count_images
from lowrank.data.reading.image_store import ArrayStore, EncodedStore, ImageStore
from lowrank.data.reading.source import ImageSource, make_source
from lowrank.data.reading_progress import run_watched
from lowrank.data.settings import DATA_FOLDER, DataSettings, parse_data_name
from lowrank.data.splits import Indices, hold_out, training_subset, validation_subset
from lowrank.errors import InputError

SplitName = Literal["train", "val", "test"]

STATISTICS_IMAGES = 50_000  # mean and deviation come from at most this many, evenly spaced over the training split
_TEST_FRACTION = 0.2  # where no test set is published
_TEST_SEED = 0  # fixed, so that the test set never changes with `split_seed`
_MEGABYTE = 1_000_000
_CACHED_SETS = 4  # in the cache of a process
_CACHED_BYTES = 2_000_000_000  # of decoded images of earlier sets in that cache, copies on devices included
LOAD_SECONDS = 60.0  # the least limit for loading a set: between two reads lie imports and sums
_BLOCK = 2048  # images decoded at a time for statistics
_COMPARED = 16  # images that are compared first, to see that not all are equal


class OnDevice(NamedTuple):
    """A split's tensors on one device: images uint8 (n, H, W, C), labels and global indices int64 (n,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """One split of a data set, n images.

    Attributes:
        name: train, val or test.
        labels: int64 (n,) on the CPU.
        indices: likewise: the global index of each image, its number among all published images whatever the split.
            The random numbers of its augmentation depend on it.
        resident: whether the images live decoded on the device; otherwise they are streamed.
        store: where the images are.
    """

    name: str
    labels: Tensor
    indices: Tensor
    resident: bool
    store: ImageStore = field(repr=False)
    _copies: dict[torch.device, OnDevice] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def decode(self, positions: Tensor, threads: int | None = None) -> Tensor:
        """Decode images now.

        Args:
            positions: within the split, int64 (b,).
            threads: that decode, at most; None for as many as help.

        Returns:
            uint8 (b, H, W, C).

        Raises:
            InputError: an image cannot be read.
        """
        return torch.from_numpy(self.store.decode(self.indices[positions].numpy(), threads))

    @property
    def images(self) -> Tensor:
        """All images, uint8 (n, H, W, C) on the CPU; decoded at the first access and cached. Resident sets only.

        Raises:
            InputError: an image cannot be read, or the set is streamed.
        """
        return self.on("cpu").images

    @property
    def is_decoded(self) -> bool:
        """Whether the images are in memory."""
        return bool(self._copies)

    @property
    def decoded_bytes(self) -> int:
        """What the decoded images take, copies on devices included."""
        return sum(copy.images.numel() for copy in self._copies.values())

    def on(self, device: torch.device | str) -> OnDevice:
        """Return the split on a device; it is copied once and cached. Resident sets only.

        Args:
            device: of the tensors.

        Returns:
            Images, labels and global indices.

        Raises:
            InputError: an image cannot be read, or the set is streamed.
        """
        device = torch.empty(0, device=device).device  # cuda becomes cuda:0
        if device not in self._copies:
            self._copies[device] = self._decode_all() if device.type == "cpu" else self._copy_to(device)
        return self._copies[device]

    def _decode_all(self) -> OnDevice:
        if not self.resident:
            raise InputError(
                f"the {self.name} split is over `resident_mb` and streamed; use its `decode`, or raise `resident_mb`"
            )
        images = torch.from_numpy(self.store.decode_shared(self.indices.numpy(), decode_all, torch.get_num_threads()))
        self.store.release()
        return OnDevice(images, self.labels, self.indices)

    def _copy_to(self, device: torch.device) -> OnDevice:
        return OnDevice(*(tensor.to(device) for tensor in self.on("cpu")))


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A data set ready to train on.

    Attributes:
        name: as in the settings.
        settings: which set, and its splits.
        classes: names of the classes.
        image_shape: (C, H, W).
        mean: of each channel in units of 0..1: as in the settings, else over the training split (an evenly spaced
            sample of it where it has more than STATISTICS_IMAGES).
        std: likewise the deviation.
        fingerprint: 16 hexadecimal digits over pixels, labels, class names and splits, and over a preprocessing that
            the settings give. Encoded bytes stand for the pixels of a test split that is decoded later, file names and
            sizes for those of a streamed set.
        train: the training split.
        val: the validation split.
        test: the test split.
        notes: what the user should know of the set: what is not used, what is done to images, pictures that are in two
            splits.
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
    notes: tuple[str, ...] = ()
    _normalisers: dict[torch.device, Normaliser] = field(default_factory=dict, repr=False)

    def split(self, name: SplitName) -> Split:
        """Return a split by its name.

        Args:
            name: train, val or test.

        Returns:
            The split.
        """
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def class_counts(self, name: SplitName) -> tuple[int, ...]:
        """Count the images of each class in a split.

        Args:
            name: train, val or test.

        Returns:
            A count for each class, in the order of `classes`.
        """
        return tuple(torch.bincount(self.split(name).labels, minlength=len(self.classes)).tolist())

    @property
    def resident(self) -> bool:
        """Whether the images live decoded on the device; otherwise they are streamed."""
        return self.train.resident

    def normaliser(self, device: torch.device | str) -> Normaliser:
        """Return the normaliser of the channels on a device; it is made once.

        Args:
            device: of the images.

        Returns:
            Offset and scale.
        """
        device = torch.empty(0, device=device).device
        if device not in self._normalisers:
            self._normalisers[device] = normaliser(self.mean, self.std, device)
        return self._normalisers[device]


_Key = tuple[tuple[tuple[str, object], ...], bool, str, str]
_CACHE: OrderedDict[_Key, ImageData] = OrderedDict()


def load_data(settings: DataSettings, data_dir: Path | None = None, download: bool = True) -> ImageData:
    """Load the data set that `settings` describe.

    The same settings and folder give the same object again, from a cache of this process that does not notice files
    that change; see clear_cache. Settings that change neither pixels nor splits share the images.

    Args:
        settings: which set, and its splits.
        data_dir: the folder of torchvision's files; by default `data` in the working directory.
        download: whether torchvision may download what is missing.

    Returns:
        The data set; the splits of a resident one are decoded, the test split only where training needs all images.

    Raises:
        InputError: the set is unknown, missing or damaged, or the settings do not fit it; one line that names the
            file, the rule and the choices.
        LoaderHungError: nothing of the user's images could be read for `loader_seconds`, or a minute if that is longer.
    """
    working_directory = os.getcwd()
    folder = os.path.join(working_directory, data_dir or DATA_FOLDER)
    for resident in (True, False):
        key = (settings.contents(), resident, folder, working_directory)
        data = _CACHE.get(key)
        if data is not None and _is_resident(data, settings) == resident:
            if data.settings != settings:
                _CACHE[key] = data = replace(data, settings=settings)
            _CACHE.move_to_end(key)
            return data
    data = _load(settings, Path(folder), download)
    _CACHE[settings.contents(), data.resident, folder, working_directory] = data
    _limit_cache()
    return data


def _load(settings: DataSettings, data_dir: Path, download: bool) -> ImageData:
    """Read and build a set; watched where it is the user's, for a download makes no progress that could be seen."""

    def load() -> ImageData:
        return _build(settings, _read(settings, data_dir, download))

    if parse_data_name(settings.name)[1] is None:
        return load()
    return run_watched(load, max(settings.loader_seconds, LOAD_SECONDS))


def _is_resident(data: ImageData, settings: DataSettings) -> bool:
    """Whether a set is small enough to live decoded under these settings."""
    images = len(data.train) + len(data.val) + len(data.test)
    return images * math.prod(data.image_shape) <= settings.resident_mb * _MEGABYTE


def _limit_cache() -> None:
    """Forget the sets that were longest not asked for; the last one stays."""
    while len(_CACHE) > 1:
        *earlier, _ = _CACHE.values()
        used = sum(split.decoded_bytes for data in earlier for split in (data.train, data.val, data.test))
        if len(_CACHE) <= _CACHED_SETS and used <= _CACHED_BYTES:
            return
        _CACHE.popitem(last=False)


def clear_cache() -> None:
    """Forget every data set that this process has loaded."""
    _CACHE.clear()


def _read(settings: DataSettings, data_dir: Path, download: bool) -> ImageSource:
    """Read the published set. Each reader is imported when it is used: some take seconds to import."""
    kind, folder = parse_data_name(settings.name)
    if folder is not None:
        if kind == "parquet":
            from lowrank.data.reading.parquet import read_parquet

            return make_source(read_parquet(Path(folder), settings.image, settings.label), settings)
        if kind == "csv":
            from lowrank.data.reading.csv_table import read_csv

            return make_source(read_csv(Path(folder), settings.image, settings.label), settings)
        if kind == "idx":
            from lowrank.data.idx_files import read_idx

            _refuse_resizing(settings)
            _refuse_columns(settings, "parquet:DIR and csv:DIR")
            return read_idx(Path(folder))
        from lowrank.data.reading.image_folder import read_folder

        _refuse_columns(settings, "parquet:DIR and csv:DIR")
        return make_source(read_folder(Path(folder)), settings)
    from lowrank.data.reading.builtin import BUILTIN_SETS, read_digits, read_torchvision

    # Weights that were trained on such a set say its size, which changes nothing
    if settings.image_size not in (None, BUILTIN_SETS[kind].image_shape[-1]) or settings.crop != 1:
        raise InputError(
            f"`image_size` is for parquet:DIR, folder:DIR and csv:DIR, but the data set is {settings.name!r}"
        )
    _refuse_columns(settings, "parquet:DIR and csv:DIR")
    source = read_digits() if kind == "digits" else read_torchvision(kind, data_dir, download)
    if settings.channels != "auto" and isinstance(source.store, ArrayStore):
        return replace(source, store=source.store.with_channels(settings.channels))
    return source


def _refuse_resizing(settings: DataSettings) -> None:
    if settings.image_size is not None or settings.crop != 1:
        raise InputError(
            f"`image_size` is for parquet:DIR, folder:DIR and csv:DIR, but the data set is {settings.name!r}"
        )


def _refuse_columns(settings: DataSettings, kinds: str) -> None:
    for name in ("image", "label"):
        if getattr(settings, name) is not None:
            raise InputError(f"`data.{name}` names a column of {kinds}, but the data set is {settings.name!r}")


def _build(settings: DataSettings, source: ImageSource) -> ImageData:
    train, val, test = splits = _splits(settings, source)
    if train.resident:
        for split in (train, val) if settings.train_images else splits:
            split.on("cpu")
    _check_images_differ(train, settings.name)
    mean, std = _normalisation(settings, train)
    return ImageData(
        name=settings.name,
        settings=settings,
        classes=source.classes,
        image_shape=source.store.shape,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(settings, source, splits),
        train=train,
        val=val,
        test=test,
        notes=(*source.notes, *_leaks(source, splits)),
    )


def _leaks(source: ImageSource, splits: tuple[Split, ...]) -> list[str]:
    """Count the pictures that are in two splits, by their encoded bytes."""
    if source.scan is None or not isinstance(source.store, EncodedStore):
        return []
    content, notes = source.scan.content, []
    for first, second in itertools.combinations(splits, 2):
        ours, theirs = first.indices.numpy(), second.indices.numpy()
        common = np.setdiff1d(np.intersect1d(content[ours], content[theirs]), [0])
        if len(common):
            one, other = (indices[np.isin(content[indices], common[:1])][0] for indices in (ours, theirs))
            notes.append(
                f"{count_images(len(common))} of {second.name} {'is' if len(common) == 1 else 'are'} in {first.name} "
                f"too, such as {source.store.origin(int(other))} = {source.store.origin(int(one))}"
            )
    return notes


def _splits(settings: DataSettings, source: ImageSource) -> tuple[Split, Split, Split]:
    members = _members(settings, source)
    values = sum(len(indices) for indices in members.values()) * math.prod(source.store.shape)

    def split(name: SplitName) -> Split:
        return Split(
            name=name,
            labels=torch.from_numpy(source.labels[members[name]]),
            indices=torch.from_numpy(members[name]),
            resident=values <= settings.resident_mb * _MEGABYTE,
            store=source.store,
        )

    return split("train"), split("val"), split("test")


def _members(settings: DataSettings, source: ImageSource) -> dict[SplitName, Indices]:
    """Divide the published parts into splits: global indices of each, ascending."""
    labels, train, val, test = source.labels, source.training, source.validation, source.test
    try:
        if test is None:
            train, test = hold_out(labels, train, _TEST_FRACTION, _TEST_SEED, "test split")
        if val is None:
            train, val = hold_out(labels, train, settings.val_fraction, settings.split_seed, "validation split")
        if settings.train_images is not None:
            train = training_subset(labels, train, settings.train_images, settings.split_seed)
            val = validation_subset(labels, val, settings.train_images, settings.split_seed)
    except InputError as error:
        raise InputError(f"data set {settings.name!r}: {error}") from error
    return {"train": train, "val": val, "test": test}


def _normalisation(settings: DataSettings, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel: those of the settings, or of the training images."""
    if settings.mean is None or settings.std is None:
        return _statistics(train)
    channels = train.store.shape[0]
    if len(settings.mean) != channels:
        raise InputError(
            f"`data.mean` and `data.std` must have one value for each channel of {settings.name}, {channels}, but have "
            f"{len(settings.mean)}"
        )
    return settings.mean, settings.std


def _pixels(split: Split, positions: Tensor) -> Tensor:
    return split.images[positions] if split.resident else split.decode(positions)


def _check_images_differ(train: Split, name: str) -> None:
    """Refuse a set of which nothing can be learned; a few images show it of almost every other."""
    few = torch.arange(min(len(train), _COMPARED)) * len(train) // min(len(train), _COMPARED)
    first = _pixels(train, few[:1])
    for positions in (few, *torch.arange(len(train)).split(_BLOCK)):
        if not _pixels(train, positions).equal(first.expand(len(positions), *first.shape[1:])):
            return
    raise InputError(f"data set {name!r}: training images must differ, but all {count_images(len(train))} are equal")


def _statistics(train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel in units of 0..1, by exact counts of values; a constant channel has 1."""
    count = min(len(train), STATISTICS_IMAGES)
    sample = torch.arange(count) * len(train) // count
    counts = np.zeros((train.store.shape[0], 256), np.int64)
    for positions in sample.split(_BLOCK):
        block = _pixels(train, positions).numpy()
        for channel in range(len(counts)):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    pixels, values = int(counts[0].sum()), np.arange(256)
    total, squares = (counts @ values).tolist(), (counts @ values**2).tolist()
    variances = [pixels * square - value * value for value, square in zip(total, squares, strict=True)]
    mean = tuple(value / (255 * pixels) for value in total)
    return mean, tuple(math.sqrt(value) / (255 * pixels) if value else 1.0 for value in variances)


def _fingerprint(settings: DataSettings, source: ImageSource, splits: tuple[Split, ...]) -> str:
    sha = hashlib.sha256(repr((source.classes, source.store.shape)).encode())
    for split in splits:
        sha.update(f"{split.name}:{len(split)};".encode())
        sha.update(split.indices.numpy().data)
        sha.update(split.labels.numpy().data)
        if split.is_decoded:
            sha.update(split.images.numpy().data)
        elif split.resident:
            source.store.hash_contents(split.indices.numpy(), sha)
        else:
            source.store.hash_files(split.indices.numpy(), sha)
        if not split.is_decoded and source.scan is not None and source.scan.conversions[split.indices.numpy()].any():
            sha.update(f"decoder {DECODER_VERSION};".encode())  # the bytes do not tell that it gives other pixels now
    if preprocessing := settings.preprocessing():
        sha.update(repr(sorted(preprocessing.items())).encode())
    if splits[0].resident:
        source.store.release()
    return sha.hexdigest()[:16]
