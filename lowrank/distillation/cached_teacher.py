"""A teacher whose outputs are read from a cache instead of being computed.

A cache file that was damaged after it had been built is built again; where that fails, the live teacher runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lowrank.data import ImageData
from lowrank.distillation.cache import Notify, TeacherCache
from lowrank.distillation.cache_file import Array, DamagedCacheError
from lowrank.distillation.teacher import Signals, Teacher

MAX_PRELOADED_BYTES = 512_000_000  # bytes of cache epochs that stay in an accelerator's memory


class CachedTeacher:
    """Gives the outputs that a cache holds.

    A damaged file is built again, so that the outputs stay the same to the bit. Where that fails too, the live teacher
    runs in that epoch, and `notify` is called.

    On a CPU each batch is read row by row from the memory map. On an accelerator a whole cache epoch is copied to the
    device, so that a step only gathers rows, and a thread reads and verifies the next one meanwhile.
    """

    def __init__(
        self, cache: TeacherCache, data: ImageData, live: Callable[[], Teacher], *,
        device: torch.device | str = "cpu", notify: Notify = print, repair: Callable[[], bool] = lambda: False,
        preload: bool | None = None,
    ):  # fmt: skip
        """Prepare to read; no file is opened yet.

        Args:
            cache: the cache to read.
            data: the images; their training split gives the order of the rows.
            live: returns the teacher that runs where the cache cannot be read.
            device: where the students' images are.
            notify: called with one line when the live teacher has to run.
            repair: fills the cache again; returns whether it could.
            preload: copy whole cache epochs to the device; None means: if it is not a CPU.
        """
        self._cache, self._live, self._notify, self._repair = cache, live, notify, repair
        self._device = torch.device(device)
        self._preload = self._device.type != "cpu" if preload is None else preload
        indices = data.train.indices
        rows = torch.zeros(int(indices.max()) + 1, dtype=torch.int64)
        rows[indices] = torch.arange(len(indices))
        self._rows = rows.to(self._device)  # global index of an image -> its row in a cache file
        self._cache_epoch: int | None = None  # the open one
        self._arrays: list[Array] | None = None  # of the open one, unless it is preloaded
        self._resident: dict[int, list[Tensor]] = {}  # preloaded cache epochs, the latest last
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._prefetched: tuple[int, Future[list[Array]]] | None = None

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """Read what the cache holds of these images; see `Teacher.signals`.

        Args:
            images: normalised images (B, C, H, W); used only if the cache cannot be read.
            indices: global indices of the images, int64 (B,).
            cache_epoch: the cache epoch that their augmentation was drawn for.

        Returns:
            Logits and attention maps.
        """
        if cache_epoch != self._cache_epoch:
            self._open(cache_epoch)
            self._cache_epoch = cache_epoch
        rows = self._rows[indices]
        if cache_epoch in self._resident:
            tensors = [tensor.index_select(0, rows) for tensor in self._resident[cache_epoch]]
        elif self._arrays is not None:
            tensors = [torch.from_numpy(array[rows.numpy()]) for array in self._arrays]
        else:
            return self._live().signals(images, indices, cache_epoch)
        pairs = zip(tensors[1:], self._cache.layout.sizes, strict=True)
        return Signals(tensors[0], tuple(tensor.view(-1, *size) for tensor, size in pairs))

    def _open(self, cache_epoch: int) -> None:
        if cache_epoch not in self._resident:
            self._load(cache_epoch)
        if self._preload:
            self._prefetch(cache_epoch + 1 if self._cache.path(cache_epoch + 1).exists() else 0)

    def _load(self, cache_epoch: int) -> None:
        self._arrays = None
        try:
            arrays = self._read(cache_epoch)
        except (DamagedCacheError, OSError) as error:
            self._notify(f"the live teacher runs in cache epoch {cache_epoch}: {error}")
            return
        if not self._preload:
            self._arrays = arrays
            return
        while self._resident and (len(self._resident) + 1) * self._cache.layout.bytes > MAX_PRELOADED_BYTES:
            self._resident.pop(next(iter(self._resident)))
        self._resident[cache_epoch] = [torch.from_numpy(array).to(self._device) for array in arrays]

    def _read(self, cache_epoch: int) -> list[Array]:
        """Read a cache epoch, after repairing the cache if need be; raises DamagedCacheError or OSError."""
        try:
            return self._read_once(cache_epoch)
        except (DamagedCacheError, OSError):
            if not self._repair():
                raise
            return self._read_once(cache_epoch)

    def _read_once(self, cache_epoch: int) -> list[Array]:
        """Read a cache epoch: views of the memory map, or, if it is to be preloaded, a copy, prefetched if possible."""
        if not self._preload:
            return self._cache.read(cache_epoch)
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None and prefetched[0] == cache_epoch:
            return prefetched[1].result()
        return self._read_copy(cache_epoch)

    def _read_copy(self, cache_epoch: int) -> list[Array]:
        return [array.copy() for array in self._cache.read(cache_epoch)]

    def _prefetch(self, cache_epoch: int) -> None:
        """Read a cache epoch in the thread; an error is raised when that cache epoch is opened.

        The thread does not copy to the device, because a CUDA graph may be captured there meanwhile.
        """
        if cache_epoch in self._resident:
            return
        if self._prefetched is None or self._prefetched[0] != cache_epoch:
            self._prefetched = (cache_epoch, self._reader.submit(self._read_copy, cache_epoch))
