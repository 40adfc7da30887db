"""Images of a streamed set, decoded in processes that are watched by their progress.

Each process (lowrank.data.decoder_process) decodes every n-th batch. They live from one pass over a split to the next,
for to start one copies the tables of all memory of the trial's process.

Letters: B images of a batch, (C, H, W) the shape of one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor

from lowrank.data.dataset import Split
from lowrank.data.decoder_process import PREFETCHED, DecoderProcess, end_decoders
from lowrank.data.reading.image_store import ImageStore
from lowrank.data.reading_progress import run_watched
from lowrank.utils import usable_cores

MIN_SLOT = 1024  # images of a batch that a process can be asked for, at least: passes have batches of several sizes


class DecoderPool:
    """Processes that decode images, kept between the passes of a training.

    They end when the pool is closed or nothing refers to it any more, and with the thread that started them.

    Args:
        workers: how many there are by default; None leaves it to whoever draws batches.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._idle: list[DecoderProcess] = []
        self._origin: tuple[ImageStore, int, threading.Thread] | None = None  # what the processes were started from
        weakref.finalize(self, end_decoders, self._idle)

    def stream(
        self, split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, loader_seconds: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of a split, and keep the processes for the next pass.

        A pass that is given up before its last batch ends its processes; the next one starts new ones.

        Args:
            split: the images.
            order: positions within the split, int64 (n,).
            batch_size: images a batch; the last one may be smaller.
            device: of the images.
            workers: processes that decode, at most one for each core; 0 decodes in a thread of this process.
            loader_seconds: time without any progress, in preparing to read or in decoding, after which it is given up.

        Yields:
            Positions, int64 (B,) on the CPU, and images, uint8 (B, H, W, C) on the device.

        Raises:
            InputError: an image cannot be read.
            LoaderHungError: there was no progress for `loader_seconds`; worker processes are then killed.
        """
        run_watched(lambda: split.store.preload(split.indices[order].numpy()), loader_seconds)
        batches = list(order.split(batch_size))
        count = min(workers, usable_cores(), len(batches))
        if count == 0:
            for positions in batches:
                images = run_watched(lambda: split.decode(positions), loader_seconds)  # noqa: B023 (called at once)
                yield positions, images.to(device, non_blocking=True)
            return
        decoders, received = self._take(split.store, count, batch_size), 0
        origin = self._origin

        def ask(index: int) -> None:
            if index < len(batches):
                indices = split.indices[batches[index]].numpy()
                decoders[index % count].ask(indices, pinned=device.type == "cuda")

        try:
            for index in range(count * PREFETCHED):
                ask(index)
            for index, positions in enumerate(batches):
                images = decoders[index % count].next(loader_seconds)
                received += 1
                ask(index + count * PREFETCHED)
                yield positions, images.to(device, non_blocking=True)
        finally:
            # Whoever counts the batches stops at the last one, without asking for another
            if received == len(batches) and not self._idle and self._origin is origin:
                self._idle += decoders
            else:
                end_decoders(decoders)

    def _take(self, store: ImageStore, count: int, batch_size: int) -> list[DecoderProcess]:
        """Take all processes that can serve a pass, `count` at least; those of another pass at work stay with it."""
        # A process knows what this one had prepared when it was started, and Linux ends it with the thread that did
        origin = (store, store.preparations, threading.current_thread())
        if origin != self._origin:
            self.close()
            self._origin = origin
        usable = [decoder for decoder in self._idle if decoder.can_decode(batch_size)]
        end_decoders([decoder for decoder in self._idle if decoder not in usable])
        self._idle.clear()
        try:
            while len(usable) < count:
                usable.append(DecoderProcess(store, max(batch_size, MIN_SLOT)))
        except BaseException:
            end_decoders(usable)
            raise
        return usable

    def close(self) -> None:
        """End the processes."""
        end_decoders(self._idle)


def stream_images(
    split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, loader_seconds: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a split, decoded by processes that end with the last one; see `DecoderPool.stream`."""
    with closing(DecoderPool()) as pool:
        yield from pool.stream(split, order, batch_size, device, workers, loader_seconds)
