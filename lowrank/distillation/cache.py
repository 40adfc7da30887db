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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.data import ImageData, ViewSettings, train_batches
from lowrank.distillation.cache_file import Array, DamagedSlotError, Layout, read_slot, write_slot
from lowrank.distillation.teacher import Signals, Taps, Teacher
from lowrank.networks.base import ImageShape
from lowrank.utils.atomic_write import TEMPORARY_SUFFIX
from lowrank.utils.locks import hold_lock
from lowrank.utils.text import format_bytes

FORMAT = 1  # of the files; part of the key
LOCK_FILE = "build.lock"
RESERVE = 256_000_000  # bytes of the disk that a cache leaves to checkpoints and records
RESIDENT = 512_000_000  # bytes of slots that are kept on an accelerator
WAIT_SECONDS = 0.2  # between two looks at the lock of another builder

Sizes = tuple[tuple[int, int], ...]
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that the contents of a slot depend on, beside its number."""

    weights: str  # sha256 of the teacher's weights
    data: str  # fingerprint
    views: ViewSettings
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


class CachedTeacher:
    """Reads a cache; a slot that has been damaged since is made again, so that what is said stays the same to the bit.

    Where that fails too, the live teacher is asked for that epoch, and `report` is told.

    On a CPU a batch is read from the memory map, row by row; an accelerator is given whole slots, so that a step costs
    it a gather only, and while it works on one the next is read and verified.
    """

    def __init__(
        self, cache: TeacherCache, data: ImageData, live: Callable[[], Teacher], *,
        device: torch.device | str = "cpu", report: Report = print, mend: Callable[[], bool] = lambda: False,
        whole: bool | None = None,
    ):  # fmt: skip
        """`mend` makes the cache whole, and says whether it could. `whole`: the device is given whole slots; None:
        where it is an accelerator."""
        self._cache, self._live, self._report, self._mend = cache, live, report, mend
        self._device = torch.device(device)
        self._whole = self._device.type != "cpu" if whole is None else whole
        indices = data.train.indices
        rows = torch.zeros(int(indices.max()) + 1, dtype=torch.int64)
        rows[indices] = torch.arange(len(indices))
        self._rows = rows.to(self._device)  # global index of an image -> its row in a slot
        self._slot: int | None = None
        self._arrays: list[Array] | None = None  # of the slot, on a CPU
        self._resident: dict[int, list[Tensor]] = {}  # slots on the accelerator, the latest last
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._ahead: tuple[int, Future[list[Array]]] | None = None  # a slot that is being read, or was

    def signals(self, images: Tensor, indices: Tensor, slot: int) -> Signals:
        """See Teacher; `images` are only needed when the slot cannot be read."""
        if slot != self._slot:
            self._open(slot)
            self._slot = slot
        rows = self._rows[indices]
        if slot in self._resident:
            picked = [tensor.index_select(0, rows) for tensor in self._resident[slot]]
        elif self._arrays is not None:
            picked = [torch.from_numpy(array[rows.numpy()]) for array in self._arrays]
        else:
            return self._live().signals(images, indices, slot)
        maps = (each.view(-1, *size) for each, size in zip(picked[1:], self._cache.layout.sizes, strict=True))
        return Signals(picked[0], tuple(maps))

    def _open(self, slot: int) -> None:
        if slot not in self._resident:
            self._load(slot)
        if self._whole:
            self._read_ahead(slot + 1 if self._cache.path(slot + 1).exists() else 0)

    def _load(self, slot: int) -> None:
        self._arrays = None
        try:
            arrays = self._read(slot)
        except (DamagedSlotError, OSError) as error:
            self._report(f"the live teacher is asked about view {slot}: {error}")
            return
        if not self._whole:
            self._arrays = arrays
            return
        while self._resident and (len(self._resident) + 1) * self._cache.layout.bytes > RESIDENT:
            self._resident.pop(next(iter(self._resident)))
        self._resident[slot] = [torch.from_numpy(array).to(self._device) for array in arrays]

    def _read(self, slot: int) -> list[Array]:
        """What `_taken` gives, after mending the cache if need be; raises DamagedSlotError or OSError."""
        try:
            return self._taken(slot)
        except (DamagedSlotError, OSError):
            if not self._mend():
                raise
            return self._taken(slot)

    def _taken(self, slot: int) -> list[Array]:
        """The map itself, or, of a slot that is given away whole, a copy, made ahead as a rule."""
        if not self._whole:
            return self._cache.read(slot)
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead is not None and ahead[0] == slot else self._copied(slot)

    def _copied(self, slot: int) -> list[Array]:
        return [array.copy() for array in self._cache.read(slot)]

    def _read_ahead(self, slot: int) -> None:
        """What goes wrong is said when the slot is asked for. Nothing is put on the device, which may be recording."""
        if slot not in self._resident and (self._ahead is None or self._ahead[0] != slot):
            self._ahead = (slot, self._reader.submit(self._copied, slot))


def kept_sizes(teacher: Sequence[tuple[int, int]], student: Sequence[tuple[int, int]]) -> Sizes:
    """The size (h, w) at which each pair of maps is compared: the smaller of the two on each axis."""
    return tuple((min(a[0], b[0]), min(a[1], b[1])) for a, b in zip(teacher, student, strict=True))


@torch.no_grad()
def tap_sizes(network: nn.Module, taps: Sequence[str], image_shape: ImageShape) -> Sizes:
    """Height and width of each tap for images of (C, H, W), from one empty image; raises InputError for an unknown."""
    if not taps:
        return ()
    place: Any = next(network.parameters(), torch.empty(0))
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with Taps(network, taps) as collected:
            network(torch.zeros(1, *image_shape, device=place.device, dtype=place.dtype))
            return tuple((each.shape[1], each.shape[2]) for each in collected.take())
    finally:
        for module in training:
            module.training = True
