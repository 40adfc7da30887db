"""Images of a streamed set, decoded in processes that are watched by their progress.

A process of torch's DataLoader that stops, even while it hands over a batch, can only be ended through its private
attributes, and whether it hangs or only takes long cannot be told. So the processes are our own: each decodes every
n-th batch, says by a short message that it gets on, and sends the pixels through a pipe that a thread reads.

Letters: B images of a batch, (C, H, W) the shape of one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from lowrank.data.dataset import Split
from lowrank.data.reading_progress import READING, run_watched
from lowrank.errors import InputError, LoaderHungError, LowrankError
from lowrank.utils import IdleWatch, exit_with_parent, usable_cores

PREFETCHED = 2  # batches of each process that are decoded before they are asked for
HEARTBEAT_SECONDS = 0.1  # at least, between two messages of progress
END_SECONDS = 5.0  # for a killed process to end; one that waits for a disk may not
_HEARTBEAT, _IMAGES, _WRONG_INPUT, _ERROR = b"h", b"i", b"w", b"e"  # kinds of messages


def stream_images(
    split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, loader_seconds: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a split, decoded in worker processes.

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
    decoders: list[_Decoder] = []
    try:
        for number in range(count):
            decoders.append(_Decoder(split, batches[number::count], pinned=device.type == "cuda"))
        for index, positions in enumerate(batches):
            yield positions, decoders[index % count].next(loader_seconds).to(device, non_blocking=True)
    finally:
        for decoder in decoders:
            decoder.process.kill()  # one that hangs does not react to a request to end, and none has anything to lose
        for decoder in decoders:
            decoder.close()


class _Decoder:
    """A process that decodes batches, and the thread of this process that receives them."""

    def __init__(self, split: Split, batches: Sequence[Tensor], *, pinned: bool):
        # Two pipes: pixels take twice as long through one that carries both directions
        self._pipe, answers = multiprocessing.Pipe(duplex=False)
        requests, self._requests = multiprocessing.Pipe(duplex=False)
        self._outcomes: queue.SimpleQueue[Tensor | BaseException | None] = queue.SimpleQueue()  # None: it has ended
        self._messages, self._pinned = 0, pinned
        channels, height, width = split.store.shape
        self._shapes = [(len(positions), height, width, channels) for positions in batches]
        self.process = multiprocessing.Process(
            target=_serve, args=(split, batches, requests, answers, os.getpid()), name="decoder", daemon=True
        )
        self.process.start()
        requests.close()
        answers.close()
        self._thread = threading.Thread(target=self._receive, name="decoder", daemon=True)
        self._thread.start()
        for _ in range(PREFETCHED):
            self._ask()

    def _ask(self) -> None:
        """Let the process decode one batch more."""
        with suppress(OSError):  # it has ended; the thread finds out how
            self._requests.send_bytes(b"")

    def next(self, seconds: float) -> Tensor:
        """Wait for the next batch; `seconds` without a message of the process are too long."""
        watch = IdleWatch(seconds, lambda: self._messages)
        while True:
            try:
                outcome = self._outcomes.get(timeout=watch.poll_seconds)
            except queue.Empty:
                if watch.is_idle():
                    raise LoaderHungError(f"a process that decodes images made no progress for {seconds:g} s") from None
                continue
            if isinstance(outcome, Tensor):
                self._ask()
                return outcome
            if outcome is None:
                self.process.join(END_SECONDS)
                raise RuntimeError(f"a process that decodes images ended with exit code {self.process.exitcode}")
            raise outcome

    def _receive(self) -> None:
        """Take the messages until the process ends, in the thread: a process may stop in the middle of a message."""
        try:
            for shape in self._shapes:
                while (kind := self._pipe.recv_bytes()) == _HEARTBEAT:
                    self._messages += 1
                if kind != _IMAGES:
                    content = self._pipe.recv_bytes()
                    self._outcomes.put(InputError(content.decode()) if kind == _WRONG_INPUT else pickle.loads(content))
                    return
                images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
                self._pipe.recv_bytes_into(images.numpy().data.cast("B"))
                self._messages += 1
                self._outcomes.put(images)
        except (EOFError, OSError):
            self._outcomes.put(None)
        except BaseException as error:
            self._outcomes.put(error)

    def close(self) -> None:
        """Wait until the killed process has ended; one that cannot be killed is left to the system."""
        self.process.join(END_SECONDS)
        if self.process.exitcode is not None:  # else the thread still reads the pipe
            self._thread.join(END_SECONDS)
            self._pipe.close()
        self._requests.close()


class _Heartbeat:
    """Sends a message of progress, but not at every image."""

    def __init__(self, pipe: Connection):
        self._pipe, self._sent_at = pipe, -HEARTBEAT_SECONDS

    def __call__(self) -> None:
        if time.monotonic() - self._sent_at >= HEARTBEAT_SECONDS:
            self._pipe.send_bytes(_HEARTBEAT)
            self._sent_at = time.monotonic()


def _serve(
    split: Split, batches: Sequence[Tensor], requests: Connection, answers: Connection, parent: int
) -> None:  # fmt: skip
    """Decode batches, each when it is asked for; the process's main function."""
    exit_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    with READING.told_to(_Heartbeat(answers)):
        for positions in batches:
            requests.recv_bytes()
            kind, content = _decode(split, positions)
            answers.send_bytes(kind)
            answers.send_bytes(content)


def _decode(split: Split, positions: Tensor) -> tuple[bytes, Any]:
    """A batch as a message: its kind and its content."""
    try:
        return _IMAGES, split.decode(positions, threads=1).contiguous().numpy().data.cast("B")
    except LowrankError as error:
        return _WRONG_INPUT, str(error).encode()
    except Exception as error:
        return _ERROR, pickle.dumps(error)
