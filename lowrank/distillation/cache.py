"""What a teacher says about the views of the training images, computed once and read by every trial of a host.

A cache is a folder named by the hash of everything that its contents depend on, with one file a slot (the number that
a view is drawn with: an epoch, or epoch modulo the slots). Slots do not depend on how many there are, so students with
different numbers of views share them, and a build that was killed goes on at the first slot that is missing.

    folder of caches / host / key / slot_00000.arrow, slot_00001.arrow ..., build.lock

Letters: B images of a batch, N training images, K classes, h x w positions of a map. A map is kept at the smaller of
the teacher's and the student's size, which is all that the loss looks at, and with length 1.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.data import AugmentationSettings, ImageData, train_batches
from lowrank.distillation.cache_file import Array, DamagedSlotError, Layout, read_slot, write_slot
from lowrank.distillation.teacher import Teacher
from lowrank.utils.atomic_write import TEMPORARY_SUFFIX
from lowrank.utils.locks import hold_lock
from lowrank.utils.text import format_bytes

FORMAT = 1  # of the files; part of the key
LOCK_FILE = "build.lock"
RESERVE = 256_000_000  # bytes of the disk that a cache leaves to checkpoints and records
WAIT_SECONDS = 0.2  # between two looks at the lock of another builder

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that the contents of a slot depend on, beside its number."""

    weights: str  # sha256 of the teacher's weights
    data: str  # fingerprint
    views: AugmentationSettings
    taps: tuple[str, ...]
    layout: Layout
    precision: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        parts = [
            FORMAT, self.weights, self.data, self.views.model_dump(), self.taps, vars(self.layout), self.precision,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class TeacherCache:
    """The slots of one key in the folder of one host."""

    def __init__(self, root: Path, key: CacheKey, *, sources: Sequence[Path] = ()):
        """`root`: folder of caches; `sources`: further such folders, whose finished slots are copied."""
        self.key, self.layout = key, key.layout
        self.folder = root / socket.gethostname() / key.digest
        self._sources = [root, *(source for source in sources if source != root)]

    def path(self, slot: int) -> Path:
        """Where a slot lies, or will."""
        return self.folder / _slot_name(slot)

    def read(self, slot: int) -> list[Array]:
        """The slot's arrays (see Layout); raises DamagedSlotError, or OSError when it is not there."""
        return read_slot(self.path(slot), self.layout)

    def missing(self, slots: int) -> list[int]:
        """Those of the slots 0 .. slots - 1 that cannot be read."""
        return [slot for slot in range(slots) if not self._usable(slot)]

    def _usable(self, slot: int) -> bool:
        try:
            self.read(slot)
        except (OSError, DamagedSlotError):
            return False
        return True

    def lacking(self, slots: int) -> int:
        """Bytes that the disk lacks for so many slots more; 0 when they fit."""
        free = shutil.disk_usage(self.folder).free
        return max(0, slots * self.layout.bytes + RESERVE - free)

    def copy(self, slot: int) -> bool:
        """Take the slot from another host's folder, if one has it whole."""
        for source in self._sources:
            for other in sorted(source.glob(f"*/{self.key.digest}/{_slot_name(slot)}")):
                if other != self.path(slot) and self._copied(other, slot):
                    return True
        return False

    def _copied(self, other: Path, slot: int) -> bool:
        try:
            arrays = read_slot(other, self.layout)
        except (DamagedSlotError, OSError):
            return False
        write_slot(self.path(slot), arrays)
        return True

    @contextmanager
    def building(self, report: Report) -> Iterator[None]:
        """Alone on this host; waits while another process builds. A builder's death frees the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(
            self.folder / LOCK_FILE,
            poll_seconds=WAIT_SECONDS,
            on_wait=lambda: report("another process builds the teacher cache; waiting for it"),
        ):
            for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            yield


def _slot_name(slot: int) -> str:
    return f"slot_{slot:05}.arrow"


@dataclass(frozen=True, kw_only=True)
class Build:
    """What it takes to fill a cache: the teacher (made when it is needed), the images and where it runs."""

    teacher: Callable[[], Teacher]
    data: ImageData
    device: torch.device | str
    batch_size: int


def prepare(
    cache: TeacherCache,
    build: Build,
    slots: int,
    *,
    report: Report = print,
    on_slot: Callable[[int], None] | None = None,
) -> bool:
    """Make sure that the slots 0 .. slots - 1 are there; False when they cannot be, and `report` was told why.

    Slots that are missing or damaged are copied from another host's folder, or else built.

    Args:
        cache: to fill.
        build: how.
        slots: how many views of each image.
        report: is told, in one line each, of what is built, how large it is and what went wrong.
        on_slot: is called with each slot that has been built.
    """
    if not cache.missing(slots):
        return True
    try:
        with cache.building(report):
            return _fill(cache, build, slots, report, on_slot)
    except OSError as error:
        report(f"no teacher cache, the live teacher is asked instead: {error}")
        return False


def _fill(cache: TeacherCache, build: Build, slots: int, report: Report, on_slot: Callable[[int], None] | None) -> bool:
    """As prepare, alone on this host."""
    missing = cache.missing(slots)
    damaged = [slot for slot in missing if cache.path(slot).exists()]
    if damaged:
        report(f"slots {', '.join(map(str, damaged))} of the teacher cache are damaged and are made again")
    missing = [slot for slot in missing if not cache.copy(slot)]
    if not missing:
        return True
    lacking = cache.lacking(len(missing))
    size = format_bytes(len(missing) * cache.layout.bytes)
    if lacking:
        short = f"{format_bytes(RESERVE)} stay free, and the disk of {cache.folder} lacks {format_bytes(lacking)}"
        report(f"no teacher cache, the live teacher is asked instead: {len(missing)} views take {size}, {short}")
        return False
    report(f"teacher cache: {len(missing)} views of {cache.layout.images:,} images, {size}, in {cache.folder}")
    started = time.monotonic()
    _build(cache, build, missing, on_slot)
    report(f"teacher cache: {len(missing)} views built in {time.monotonic() - started:.1f} s")
    return True


def _build(cache: TeacherCache, build: Build, slots: Sequence[int], on_slot: Callable[[int], None] | None) -> None:
    """Build slot after slot; raises OSError, and then what was built here is removed: the disk is wanted."""
    teacher = build.teacher()
    written = []
    try:
        for slot in slots:
            write_slot(cache.path(slot), _ask(teacher, cache, build, slot))
            written.append(slot)
            if on_slot is not None:
                on_slot(slot)
    except OSError:
        for slot in written:
            cache.path(slot).unlink(missing_ok=True)
        raise


def _ask(teacher: Teacher, cache: TeacherCache, build: Build, slot: int) -> list[Array]:
    """What the teacher says about the views `slot` of all training images, in the order of the split."""
    arrays = cache.layout.empty()
    data, views = build.data, cache.key.views
    batches = train_batches(data, build.device, build.batch_size, views, 0, 0, drop_last=False, slot=slot)
    for images, _, indices in batches:
        said = teacher.signals(images, indices, slot)
        rows = torch.searchsorted(data.train.indices, indices.cpu()).numpy()
        arrays[0][rows] = said.logits.float().cpu().numpy()
        for kept, size, attention in zip(arrays[1:], cache.layout.sizes, said.maps, strict=True):
            kept[rows] = _kept_map(attention, size).cpu().numpy()
    return arrays


def _kept_map(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) -> float16 (B, h * w), each row of length 1."""
    pooled = functional.adaptive_avg_pool2d(attention.float(), size)
    return functional.normalize(pooled.flatten(1), dim=1).half()
