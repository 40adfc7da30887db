"""Images of a streamed set, decoded in worker processes that are watched.

The one place that uses DataLoader's private API: a worker that hangs is killed, and the loader with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowrank.data.dataset import Split
from lowrank.errors import InputError, LoaderHungError, LowrankError
from lowrank.utils import exit_with_parent, usable_cores


class _DecodedBatches(Dataset[tuple[Tensor, Tensor | str]]):
    """Element i is batch i: (positions, images uint8 (B, H, W, C)), or (positions, error message)."""

    def __init__(self, split: Split, batches: list[Tensor], threads: int | None) -> None:
        self._split, self._batches, self._threads = split, batches, threads

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | str]:
        positions = self._batches[index]
        try:
            return positions, self._split.decode(positions, self._threads)
        except LowrankError as error:  # a worker process would turn it into a traceback of many lines
            return positions, str(error)


def _start_worker(parent: int, index: int) -> None:
    exit_with_parent(parent)  # torch's own check waits for a decoder that hangs


def stream_images(
    split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, loader_seconds: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a split, decoded in worker processes.

    Args:
        split: the images.
        order: positions within the split, int64 (n,).
        batch_size: images a batch; the last one may be smaller.
        device: of the images.
        workers: processes that decode, at most one for each core; 0 decodes in this process.
        loader_seconds: time without a batch after which the worker processes are killed.

    Yields:
        Positions, int64 (B,) on the CPU, and images, uint8 (B, H, W, C) on the device.

    Raises:
        InputError: an image cannot be read.
        LoaderHungError: no batch came for `loader_seconds`.
    """
    workers = min(workers, usable_cores())
    loader = DataLoader(
        _DecodedBatches(split, list(order.split(batch_size)), threads=1 if workers else None),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(_start_worker, os.getpid()) if workers else None,
        generator=torch.Generator(),  # the default one would draw from torch's random state
    )
    for positions, images in _watched(loader, loader_seconds) if workers else loader:
        if isinstance(images, str):
            raise InputError(images)
        yield positions, images.to(device, non_blocking=True)


def _watched(loader: DataLoader[Any], seconds: float) -> Iterator[Any]:
    """Yield the batches of a loader; when one takes too long, kill its processes and raise LoaderHungError.

    The loader's own time-out is no substitute: a process that stops while it hands over a batch blocks beyond it.
    """
    batches: Any = iter(loader)
    hung = threading.Event()

    def kill_workers() -> None:
        hung.set()
        for process in batches._workers:  # one that hangs does not react to a request to end
            process.kill()

    while True:
        timer = threading.Timer(seconds, kill_workers)
        timer.daemon = True
        timer.start()
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if hung.is_set():
                with suppress(RuntimeError):  # it reports the killed process once more, here or in its destructor
                    batches._shutdown_workers()
                raise LoaderHungError(f"no batch came from the loader's processes for {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
        yield batch
