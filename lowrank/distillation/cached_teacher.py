"""A teacher whose outputs are read from a cache instead of being computed.

A cache epoch is the set of outputs for one augmentation of the training images; epochs reuse them in turn. The live
teacher is the network that computes the outputs.
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

MAX_PRELOADED_BYTES = 512_000_000  # on an accelerator; beyond that the oldest cache epoch is dropped


class CachedTeacher:
    """A teacher that reads its outputs from a cache.

    A file that was damaged after it had been built is built again, so that the outputs stay bit-identical. If that
    fails too, the live teacher runs in that epoch, and `notify` is called.

    On a CPU each batch is read row by row from the memory map. On an accelerator a whole cache epoch is copied to the
    device, so that a step only gathers rows. Meanwhile a thread reads and verifies the next cache epoch.
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
        self._preloaded: dict[int, list[Tensor]] = {}  # tensors on the device by cache epoch, the newest last
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._prefetched: tuple[int, Future[list[Array]]] | None = None

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """Return the teacher's outputs on these images; see `Teacher.signals`.

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
        if cache_epoch in self._preloaded:
            tensors = [tensor.index_select(0, rows) for tensor in self._preloaded[cache_epoch]]
        elif self._arrays is not None:
            tensors = [torch.from_numpy(array[rows.numpy()]) for array in self._arrays]
        else:
            return self._live_teacher().signals(images, indices, cache_epoch)
        pairs = zip(tensors[1:], self._cache.layout.sizes, strict=True)
        return Signals(tensors[0], tuple(tensor.view(-1, *size) for tensor, size in pairs))

    def _open(self, cache_epoch: int) -> None:
        """Make a cache epoch available, and start to read the next one if cache epochs are preloaded."""
        if cache_epoch not in self._preloaded:
            self._load(cache_epoch)
        if self._preload:
            self._prefetch(cache_epoch + 1 if self._cache.path(cache_epoch + 1).exists() else 0)

    def _load(self, cache_epoch: int) -> None:
        """Read a cache epoch into `_arrays` or `_preloaded`; into neither where the live teacher has to run."""
        self._arrays = None
        try:
            arrays = self._read(cache_epoch)
        except (DamagedCacheError, OSError) as error:
            self._notify(f"the live teacher runs in cache epoch {cache_epoch}: {error}")
            return
        if not self._preload:
            self._arrays = arrays
            return
        while self._preloaded and (len(self._preloaded) + 1) * self._cache.layout.bytes > MAX_PRELOADED_BYTES:
            self._preloaded.pop(next(iter(self._preloaded)))
        self._preloaded[cache_epoch] = [torch.from_numpy(array).to(self._device) for array in arrays]

    def _read(self, cache_epoch: int) -> list[Array]:
        """Read a cache epoch; if that fails, repair the cache and read again. Raises DamagedCacheError or OSError."""
        try:
            return self._read_once(cache_epoch)
        except (DamagedCacheError, OSError):
            if not self._repair():
                raise
            return self._read_once(cache_epoch)

    def _read_once(self, cache_epoch: int) -> list[Array]:
        """Read a cache epoch: views of the memory map, or a copy to preload (the thread's, if it has read that one)."""
        if not self._preload:
            return self._cache.read(cache_epoch)
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None and prefetched[0] == cache_epoch:
            return prefetched[1].result()
        return self._read_copy(cache_epoch)

    def _read_copy(self, cache_epoch: int) -> list[Array]:
        return [array.copy() for array in self._cache.read(cache_epoch)]

    def _prefetch(self, cache_epoch: int) -> None:
        """Read a cache epoch in the thread; an error is raised only when that cache epoch is opened.

        The thread does not copy to the device, because a CUDA graph may be captured there at the same time.
        """
        if cache_epoch in self._preloaded:
            return
        if self._prefetched is None or self._prefetched[0] != cache_epoch:
            self._prefetched = (cache_epoch, self._reader.submit(self._read_copy, cache_epoch))
