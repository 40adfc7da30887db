"""A teacher that is read from a cache instead of being run.

A slot that was damaged after it had been built is made again; where that fails, the live teacher is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lowrank.data import ImageData
from lowrank.distillation.cache import Report, TeacherCache
from lowrank.distillation.cache_file import Array, DamagedSlotError
from lowrank.distillation.teacher import Signals, Teacher

RESIDENT = 512_000_000  # bytes of slots that are kept on an accelerator


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
