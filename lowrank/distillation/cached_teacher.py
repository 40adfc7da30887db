"""A teacher whose outputs are read from a cache instead of being computed.

A cache epoch is the set of outputs for one augmentation of the training images; epochs reuse them in turn. The live
teacher is the network that computes the outputs.

On an accelerator the outputs of whole cache epochs lie in one table on the device, and a step gathers its rows there:
all cache epochs where they fit in a share of the free memory, else two. While one is used, a thread reads the next
one into memory that the device can read by itself, from where a stream of its own copies it to the device. The stream
of the training waits for that copy's event, the host for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lowrank.data import ImageData
from lowrank.distillation.cache import Notify, TeacherCache
from lowrank.distillation.cache_file import Array, DamagedCacheError
from lowrank.distillation.signal_table import RowLayout, SignalRows
from lowrank.distillation.teacher import BatchSignals, Signals, Teacher

T = TypeVar("T")

MAX_PRELOADED_BYTES = 4_000_000_000  # of all cache epochs on an accelerator; if they are more, two of them
MAX_PRELOADED_SHARE = 1 / 32  # of a GPU's memory, that is free and that the trial may use, for all cache epochs
MAX_PINNED_BYTES = 1_000_000_000  # of a cache epoch that is copied ahead: the host cannot swap such memory out


class CachedTeacher:
    """A teacher that reads its outputs from a cache.

    A file that was damaged after it had been built is built again, so that the outputs stay bit-identical. If that
    fails too, the live teacher runs in that epoch, and `notify` is called.

    On a CPU each batch is read row by row from the memory map. On an accelerator whole cache epochs are copied to the
    device.
    """

    def __init__(
        self, cache: TeacherCache, data: ImageData, live: Callable[[], Teacher], *,
        device: torch.device | str = "cpu", notify: Notify = print, repair: Callable[[], bool] = lambda: False,
        preload: bool | None = None,
    ):  # fmt: skip
        """Prepare to read; no file is opened yet.

        Args:
            cache: the cache to read.
            data: the images; a cache file has their rows in the order of the training split.
            live: returns the live teacher; called when the cache cannot be read.
            device: where the student's images are.
            notify: called with one line when the live teacher has to run.
            repair: builds the damaged files again; returns whether that worked.
            preload: whether to copy whole cache epochs to the device; None for: unless the device is a CPU.
        """
        self._cache, self._live_teacher, self._notify, self._repair = cache, live, notify, repair
        self._device = torch.device(device)
        self._preload = self._device.type != "cpu" if preload is None else preload
        indices = data.train.indices
        rows = torch.zeros(int(indices.max()) + 1, dtype=torch.int64)
        rows[indices] = torch.arange(len(indices))
        self._rows = rows.to(self._device)  # the row in a cache file, by the image's global index
        self._cache_epoch: int | None = None  # the cache epoch that `signals` read last
        self._arrays: list[Array] | None = None  # its memory map; None if it is preloaded or cannot be read
        self._table: _Table | None = None  # the preloaded cache epochs
        self._epoch_rows = self._rows  # of the table's rows, those of the present cache epoch
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._prefetched: tuple[int, Future[Tensor]] | None = None

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> BatchSignals:
        """Return the teacher's outputs on these images; see `Teacher.signals`.

        Args:
            images: normalised images (B, C, H, W); used only if the cache cannot be read.
            indices: global indices of the images, int64 (B,).
            cache_epoch: the cache epoch that their augmentation was drawn for.

        Returns:
            Logits and attention maps, or their rows of a table on the device.
        """
        if cache_epoch != self._cache_epoch:
            self._open(cache_epoch)
            self._cache_epoch = cache_epoch
        if self._table is not None and cache_epoch in self._table.slots:
            self._copy_ahead(self._table)
            return SignalRows(self._table.rows, self._epoch_rows[indices], self._table.layout)
        if self._arrays is None:
            return self._live_teacher().signals(images, indices, cache_epoch)
        rows = self._rows[indices].numpy()
        logits, *maps = (torch.from_numpy(array[rows]) for array in self._arrays)
        sizes = self._cache.layout.sizes
        return Signals(logits, tuple(tensor.view(-1, *size) for tensor, size in zip(maps, sizes, strict=True)))

    def _open(self, cache_epoch: int) -> None:
        """Make a cache epoch available, and start to read the next one if cache epochs are preloaded."""
        if not self._preload:
            self._arrays = self._read_or_notify(cache_epoch, self._cache.read)
            return
        if self._table is None:
            self._table = _Table.for_cache(self._cache, self._device)
        if cache_epoch not in self._table.slots:
            packed = self._read_or_notify(cache_epoch, self._read_packed)
            if packed is not None:
                self._table.copy(cache_epoch, packed)
        if cache_epoch in self._table.slots:
            self._epoch_rows = self._rows + self._table.begin(cache_epoch)
        self._prefetch(cache_epoch + 1 if self._cache.path(cache_epoch + 1).exists() else 0)

    def _read_or_notify(self, cache_epoch: int, read: Callable[[int], T]) -> T | None:
        """Read a cache epoch; where that fails, repair the cache and read again. None: the live teacher has to run."""
        try:
            try:
                return read(cache_epoch)
            except (DamagedCacheError, OSError):
                if not self._repair():
                    raise
                return read(cache_epoch)
        except (DamagedCacheError, OSError) as error:
            self._notify(f"the live teacher runs in cache epoch {cache_epoch}: {error}")
            return None

    def _read_packed(self, cache_epoch: int) -> Tensor:
        """Return the packed rows of a cache epoch: the thread's, if it has read that one."""
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None:
            if prefetched[0] == cache_epoch:
                return prefetched[1].result()
            prefetched[1].exception()  # its buffer must not be written to any more
        assert self._table is not None
        return self._pack(cache_epoch, self._table.buffer())

    def _pack(self, cache_epoch: int, buffer: Tensor) -> Tensor:
        RowLayout.of(self._cache.layout).pack(self._cache.read(cache_epoch), buffer)
        return buffer

    def _prefetch(self, cache_epoch: int) -> None:
        """Read a cache epoch in the thread; an error is raised only when that cache epoch is opened.

        The thread calls nothing of the device, because a CUDA graph may be captured there at the same time.
        """
        assert self._table is not None
        if cache_epoch in self._table.slots or self._prefetched is not None:
            return
        self._prefetched = (cache_epoch, self._reader.submit(self._pack, cache_epoch, self._table.buffer()))

    def _copy_ahead(self, table: _Table) -> None:
        """Start to copy what the thread has read, if there is a slot besides the present one."""
        if self._prefetched is None or table.count < 2:
            return
        cache_epoch, future = self._prefetched
        if future.done() and future.exception() is None:
            self._prefetched = None
            table.copy(cache_epoch, future.result())


@dataclass
class _Event:
    """Of a copy; None on a device without streams."""

    event: torch.cuda.Event | None = None

    def finish(self) -> None:
        """Let the host wait for it."""
        if self.event is not None:
            self.event.synchronize()


class _Table:
    """Cache epochs on a device, each in a slot of its own, and the host's buffers that they are copied from.

    Attributes:
        rows: int16 (count * N, columns).
        count: slots.
        slots: by cache epoch, the oldest copy first.
        layout: of a row.
    """

    def __init__(self, layout: RowLayout, images: int, count: int, device: torch.device):
        self.layout, self.count, self._images, self._device = layout, count, images, device
        self.rows = torch.zeros((count * images, layout.columns), dtype=torch.int16, device=device)
        self.slots: dict[int, int] = {}
        self._copied: dict[int, _Event] = {}  # by slot
        self._present: int | None = None  # the cache epoch in use
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._pin = on_gpu and self.rows[:images].nbytes <= MAX_PINNED_BYTES
        self._buffers: list[tuple[Tensor, _Event]] = []

    @classmethod
    def for_cache(cls, cache: TeacherCache, device: torch.device) -> _Table:
        """Make an empty table for the cache epochs that have files."""
        layout = RowLayout.of(cache.layout)
        size, epochs, budget = 2 * layout.columns * cache.layout.images, 1, float(MAX_PRELOADED_BYTES)
        while cache.path(epochs).exists():
            epochs += 1
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            allowed = torch.cuda.get_per_process_memory_fraction(device.index) * total  # None: the present GPU
            budget = min(budget, MAX_PRELOADED_SHARE * min(free, allowed))
        count = epochs if epochs * size <= budget else min(epochs, 2 if size <= MAX_PINNED_BYTES else 1)
        return cls(layout, cache.layout.images, count, device)

    def buffer(self) -> Tensor:
        """Return memory of the host for a cache epoch, int16 (N, columns), that no copy reads any more."""
        if len(self._buffers) < 2:
            shape = (self._images, self.layout.columns)
            self._buffers.append((torch.zeros(shape, dtype=torch.int16, pin_memory=self._pin), _Event()))
        else:
            self._buffers.append(self._buffers.pop(0))  # the one that was used before the last
        buffer, copied = self._buffers[-1]
        copied.finish()  # a copy of one cache epoch ago, so there is nothing to wait for
        return buffer

    def copy(self, cache_epoch: int, packed: Tensor) -> None:
        """Copy a cache epoch to the device, in place of the oldest one that is not in use.

        Args:
            cache_epoch: its number.
            packed: from `buffer`.
        """
        if len(self.slots) < self.count:
            slot = len(self.slots)
        else:
            slot = self.slots.pop(next(epoch for epoch in self.slots if epoch != self._present or self.count == 1))
        target = self.rows[slot * self._images : (slot + 1) * self._images]
        event = _Event()
        if self._stream is None:
            target.copy_(packed)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # earlier steps may read the slot
            with torch.cuda.stream(self._stream):
                target.copy_(packed, non_blocking=True)
                event.event = torch.cuda.Event()
                event.event.record(self._stream)
        self.slots[cache_epoch], self._copied[slot] = slot, event
        self._buffers = [(buffer, event if buffer is packed else other) for buffer, other in self._buffers]

    def begin(self, cache_epoch: int) -> int:
        """Let the training's stream wait for a cache epoch's copy; returns the row at which its slot begins."""
        slot, self._present = self.slots[cache_epoch], cache_epoch
        event = self._copied[slot].event
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)
        return slot * self._images
