"""Writes a teacher cache: the teacher's outputs on the training images, computed once per host and read by every trial.

A cache is a folder named by the hash of everything that its contents depend on. It holds one file per cache epoch: the
epoch that the augmentation is drawn for, or that epoch modulo the number of cache epochs. A file does not depend on how
many others there are, so students with different numbers of cache epochs share files, and a build that was killed
continues at the first missing one.

    folder of caches / host / key / slot_00000.arrow, slot_00001.arrow ..., build.lock

Letters: B images of a batch, N training images, K classes, h x w positions of a map. An attention map is stored at the
smaller of the teacher's and the student's size, because the loss compares them at that size, and has length 1.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.data import AugmentationSettings, DecoderPool, ImageData, train_batches
from lowrank.distillation.cache_file import Array, DamagedCacheError, Layout, read_cache_file, write_cache_file
from lowrank.distillation.teacher import Teacher
from lowrank.utils import TEMPORARY_SUFFIX, IdleWatch, LockedError, format_bytes, format_counted, hold_lock

FORMAT = 1  # version of the files; part of the key
LOCK_FILE = "build.lock"
RESERVE = 256_000_000  # bytes of the disk that stay free for checkpoints and records
WAIT_SECONDS = 0.2  # between two tries to take the lock
PROGRESS_FILE = "build.progress"  # touched while a cache is built, so that who waits can tell work from a hang
PROGRESS_SECONDS = 1.0  # at least, between two touches
MAX_IDLE_SECONDS = 600.0  # without progress of the builder, after which nobody waits for it any more

Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that a cache file depends on, except its cache epoch."""

    weights: str  # sha256 of the teacher's weights
    data: str  # fingerprint of images and splits
    views: AugmentationSettings
    taps: tuple[str, ...]
    layout: Layout
    precision: str

    @property
    def digest(self) -> str:
        """The name of the cache's folder: 16 hexadecimal digits."""
        parts = [
            FORMAT, self.weights, self.data, self.views.model_dump(), self.taps, vars(self.layout), self.precision,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class TeacherCache:
    """The cache files of one key in the folder of this host."""

    def __init__(self, root: Path, key: CacheKey, *, sources: Sequence[Path] = ()):
        """Name the folder of a cache; nothing is read or written.

        Args:
            root: folder of caches.
            key: what the contents depend on.
            sources: further folders of caches, from which finished files may be copied.
        """
        self.key, self.layout = key, key.layout
        self.folder = root / socket.gethostname() / key.digest
        self._sources = [root, *(source for source in sources if source != root)]

    def path(self, cache_epoch: int) -> Path:
        """Return the path of a cache epoch's file, whether it exists or not."""
        return self.folder / _file_name(cache_epoch)

    def read(self, cache_epoch: int) -> list[Array]:
        """Read the arrays of a cache epoch; see `Layout`.

        Args:
            cache_epoch: its number.

        Returns:
            Logits (N, K), then one map (N, h * w) per tap.

        Raises:
            DamagedCacheError: the file is damaged.
            OSError: there is no such file.
        """
        return read_cache_file(self.path(cache_epoch), self.layout)

    def missing(self, cache_epochs: int) -> list[int]:
        """List the numbers below `cache_epochs` whose file is missing or damaged."""
        return [cache_epoch for cache_epoch in range(cache_epochs) if not self._is_readable(cache_epoch)]

    def _is_readable(self, cache_epoch: int) -> bool:
        try:
            self.read(cache_epoch)
        except (OSError, DamagedCacheError):
            return False
        return True

    def missing_bytes(self, cache_epochs: int) -> int:
        """Return how many bytes the disk lacks for `cache_epochs` more files; 0 if they fit."""
        free = shutil.disk_usage(self.folder).free
        return max(0, cache_epochs * self.layout.bytes + RESERVE - free)

    def copy(self, cache_epoch: int) -> bool:
        """Copy a cache epoch from another host's folder.

        Args:
            cache_epoch: its number.

        Returns:
            Whether some folder had an undamaged file of it.

        Raises:
            OSError: the copy cannot be written.
        """
        for source in self._sources:
            for path in sorted(source.glob(f"*/{self.key.digest}/{_file_name(cache_epoch)}")):
                if path != self.path(cache_epoch) and self._copy_file(path, cache_epoch):
                    return True
        return False

    def _copy_file(self, source: Path, cache_epoch: int) -> bool:
        try:
            arrays = read_cache_file(source, self.layout)
        except (DamagedCacheError, OSError):
            return False
        write_cache_file(self.path(cache_epoch), arrays)
        return True

    @contextmanager
    def building(self, notify: Notify) -> Iterator[None]:
        """Hold the host's lock on this cache within the block, waiting while another process builds.

        Args:
            notify: called with one line if another process holds the lock.

        Raises:
            LockedError: the process that holds the lock has made no progress for `MAX_IDLE_SECONDS`.
            OSError: the folder or the lock cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = self.folder / PROGRESS_FILE
        with hold_lock(
            self.folder / LOCK_FILE,
            poll_seconds=WAIT_SECONDS,
            on_wait=lambda: notify("another process builds the teacher cache; waiting for it"),
            cancelled=IdleWatch(MAX_IDLE_SECONDS, lambda: _time_of_change(progress)).is_idle,
        ):
            for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            yield


def _time_of_change(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class _ProgressFile:
    """Touches the progress file of a cache that is being built, and calls a function, but not at every batch."""

    def __init__(self, folder: Path, on_progress: Callable[[], None] | None):
        self._path, self._touched, self._on_progress = folder / PROGRESS_FILE, -PROGRESS_SECONDS, on_progress

    def touch(self) -> None:
        if time.monotonic() - self._touched >= PROGRESS_SECONDS:
            self._path.touch()
            self._touched = time.monotonic()
            if self._on_progress is not None:
                self._on_progress()


def _file_name(cache_epoch: int) -> str:
    return f"slot_{cache_epoch:05}.arrow"


@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """What a cache is filled from.

    Attributes:
        teacher: makes the teacher; called only if a file must be built.
        data: the images.
        device: where the teacher runs.
        batch_size: of its forward passes.
    """

    teacher: Callable[[], Teacher]
    data: ImageData
    device: torch.device | str
    batch_size: int


def fill_cache(
    cache: TeacherCache,
    source: CacheSource,
    cache_epochs: int,
    *,
    notify: Notify = print,
    on_epoch_cached: Callable[[int], None] | None = None,
    on_progress: Callable[[], None] | None = None,
) -> bool:
    """Make sure that a cache holds the first `cache_epochs` cache epochs.

    A missing or damaged file is copied from another host's folder, or else built. If the disk is too small or cannot be
    written, files copied or built by this call are removed again: checkpoints and records need the disk.

    Args:
        cache: the cache to fill.
        source: what to build it from.
        cache_epochs: how many cache epochs it must hold.
        notify: called with one line each on what is built, how large it is, and what went wrong.
        on_epoch_cached: called with each cache epoch that was built.
        on_progress: called while this process builds, at most once a second.

    Returns:
        False if the cache could not be filled; `notify` was given the reason.
    """
    if not cache.missing(cache_epochs):
        return True
    try:
        with cache.building(notify):
            return _fill(cache, source, cache_epochs, notify, on_epoch_cached, on_progress)
    except LockedError:
        notify(
            "no teacher cache, the live teacher runs instead: the process that builds it has made no progress for "
            f"{MAX_IDLE_SECONDS:.0f} s and still holds {cache.folder / LOCK_FILE}"
        )
        return False
    except OSError as error:
        notify(f"no teacher cache, the live teacher runs instead: {error}")
        return False


def _fill(
    cache: TeacherCache,
    source: CacheSource,
    cache_epochs: int,
    notify: Notify,
    on_epoch_cached: Callable[[int], None] | None,
    on_progress: Callable[[], None] | None,
) -> bool:
    """Fill a cache whose lock is held; on an OSError the files that were written here are removed."""
    missing = cache.missing(cache_epochs)  # again: another process may have built them meanwhile
    damaged = [cache_epoch for cache_epoch in missing if cache.path(cache_epoch).exists()]
    if damaged:
        notify(f"epochs {', '.join(map(str, damaged))} of the teacher cache are damaged and are built again")
    if not missing:
        return True
    missing_bytes = cache.missing_bytes(len(missing))
    size = format_bytes(len(missing) * cache.layout.bytes)
    epochs = format_counted(len(missing), "epoch")
    if missing_bytes:
        reason = (
            f"{format_bytes(RESERVE)} stay free, and the disk of {cache.folder} lacks {format_bytes(missing_bytes)}"
        )
        notify(f"no teacher cache, the live teacher runs instead: {size} for {epochs}, {reason}")
        return False
    progress, written = _ProgressFile(cache.folder, on_progress), []
    try:
        for cache_epoch in missing:
            if cache.copy(cache_epoch):
                written.append(cache_epoch)
                progress.touch()
        missing = [cache_epoch for cache_epoch in missing if cache_epoch not in written]
        if missing:
            size, epochs = format_bytes(len(missing) * cache.layout.bytes), format_counted(len(missing), "epoch")
            notify(f"teacher cache: {epochs} of {cache.layout.images:,} images, {size}, in {cache.folder}")
            start, teacher = time.monotonic(), source.teacher()
            with closing(DecoderPool()) as decoders:
                for cache_epoch in missing:
                    arrays = _run_teacher(teacher, cache, source, cache_epoch, progress, decoders)
                    write_cache_file(cache.path(cache_epoch), arrays)
                    written.append(cache_epoch)
                    if on_epoch_cached is not None:
                        on_epoch_cached(cache_epoch)
            notify(f"teacher cache: {epochs} built in {time.monotonic() - start:.1f} s")
    except OSError:
        for cache_epoch in written:
            cache.path(cache_epoch).unlink(missing_ok=True)
        raise
    return True


def _run_teacher(
    teacher: Teacher, cache: TeacherCache, source: CacheSource, cache_epoch: int, progress: _ProgressFile,
    decoders: DecoderPool,
) -> list[Array]:  # fmt: skip
    """Run the teacher on all training images as augmented in `cache_epoch`; rows are in the order of the split."""
    arrays = cache.layout.empty()
    data, views = source.data, cache.key.views
    batches = train_batches(
        data, source.device, source.batch_size, augmentation=views, order_seed=0, epoch=0, drop_last=False,
        cache_epoch=cache_epoch, decoders=decoders,
    )  # fmt: skip
    for images, _, indices in batches:
        progress.touch()
        signals = teacher.signals(images, indices, cache_epoch).gather()
        rows = torch.searchsorted(data.train.indices, indices.cpu()).numpy()
        arrays[0][rows] = signals.logits.float().cpu().numpy()
        for maps, size, attention in zip(arrays[1:], cache.layout.sizes, signals.maps, strict=True):
            maps[rows] = _pooled_map(attention, size).cpu().numpy()
    return arrays


def _pooled_map(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool maps (B, H, W) to float16 (B, h * w), each row of length 1."""
    pooled = functional.adaptive_avg_pool2d(attention.float(), size)
    return functional.normalize(pooled.flatten(1), dim=1).half()
