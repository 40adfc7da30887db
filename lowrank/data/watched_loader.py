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
from lowrank.utils.cpu import usable_cores
from lowrank.utils.parent_death import exit_with_parent


class _Decoded(Dataset[tuple[Tensor, Tensor | str]]):
    """Item i is batch i: (positions, images uint8 (B, H, W, C)), or (positions, what went wrong)."""

    def __init__(self, split: Split, batches: list[Tensor], threads: int | None) -> None:
        self._split, self._batches, self._threads = split, batches, threads

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor | str]:
        positions = self._batches[item]
        try:
            return positions, self._split.decode(positions, self._threads)
        except LowrankError as error:  # a worker process would turn it into a traceback of many lines
            return positions, str(error)


def _begin_worker(parent: int, index: int) -> None:
    exit_with_parent(parent)  # torch's own watch waits for a decoder that hangs


def stream_images(
    split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, patience: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions on the CPU, images uint8 (B, H, W, C) on the device), decoded in worker processes."""
    workers = min(workers, usable_cores())
    if workers:
        split.store.hold(split.indices[order].numpy())
    loader = DataLoader(
        _Decoded(split, list(order.split(batch_size)), threads=1 if workers else None),
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(_begin_worker, os.getpid()) if workers else None,
        generator=torch.Generator(),  # its own: a default one would draw from torch's random state
    )
    for positions, images in _awaited(loader, patience) if workers else loader:
        if isinstance(images, str):
            raise InputError(images)
        yield positions, images.to(device, non_blocking=True)


def _awaited(loader: DataLoader[Any], patience: float) -> Iterator[Any]:
    """What a loader gives; raises LoaderHungError, and leaves none of its processes, when that takes too long.

    The loader's own time-out does not hold: a process that stops while it hands over a batch blocks beyond it.
    """
    batches: Any = iter(loader)
    hung = threading.Event()

    def end() -> None:
        hung.set()
        for process in batches._workers:  # one that hangs does not hear a request to end
            process.kill()

    while True:
        timer = threading.Timer(patience, end)
        timer.daemon = True
        timer.start()
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if hung.is_set():
                with suppress(RuntimeError):  # torch tells of the killed process once more, else when this is collected
                    batches._shutdown_workers()
                raise LoaderHungError(f"no batch came from the loader's processes for {patience:g} s") from error
            raise
        finally:
            timer.cancel()
        yield batch
