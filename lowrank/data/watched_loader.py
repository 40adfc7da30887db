"""Images of a streamed set, decoded in processes that are watched by their progress.

A process of torch's DataLoader that stops, even while it hands over a batch, can only be ended through its private
attributes, and whether it hangs or only takes long cannot be told. So the processes are our own: each decodes every
n-th batch, says by a short message that it gets on, and sends the pixels through a pipe that a thread reads. They live
from one pass over a split to the next, for to start one copies the tables of all memory of the trial's process.

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
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank.data.dataset import Split
from lowrank.data.reading.image_store import ImageStore
from lowrank.data.reading_progress import READING, run_watched
from lowrank.data.splits import Indices
from lowrank.errors import InputError, LoaderHungError, LowrankError
from lowrank.utils import IdleWatch, exit_with_parent, usable_cores

PREFETCHED = 2  # batches of each process that are decoded before they are asked for
HEARTBEAT_SECONDS = 0.1  # at least, between two messages of progress
END_SECONDS = 5.0  # for a killed process to end; one that waits for a disk may not
MIN_SLOT = 1024  # images of a batch that a process can be asked for, at least: passes have batches of several sizes
_HEARTBEAT, _IMAGES, _WRONG_INPUT, _ERROR = b"h", b"i", b"w", b"e"  # kinds of messages


class DecoderPool:
    """Processes that decode images, kept between the passes of a training.

    They end when the pool is closed or nothing refers to it any more, and with the thread that started them.

    Args:
        workers: how many there are by default; None leaves it to whoever draws batches.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._idle: list[_Decoder] = []
        self._origin: tuple[ImageStore, int, threading.Thread] | None = None  # what the processes were started from
        weakref.finalize(self, _end, self._idle)

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
                _end(decoders)

    def _take(self, store: ImageStore, count: int, batch_size: int) -> list[_Decoder]:
        """Take all processes that can serve a pass, `count` at least; those of another pass at work stay with it."""
        # A process knows what this one had prepared when it was started, and Linux ends it with the thread that did
        origin = (store, store.preparations, threading.current_thread())
        if origin != self._origin:
            self.close()
            self._origin = origin
        usable = [decoder for decoder in self._idle if decoder.can_decode(batch_size)]
        _end([decoder for decoder in self._idle if decoder not in usable])
        self._idle.clear()
        try:
            while len(usable) < count:
                usable.append(_Decoder(store, max(batch_size, MIN_SLOT)))
        except BaseException:
            _end(usable)
            raise
        return usable

    def close(self) -> None:
        """End the processes."""
        _end(self._idle)


def _end(decoders: list[_Decoder]) -> None:
    """Kill processes and wait for their end; those of the process that this one is a copy of go on."""
    owned = [decoder for decoder in decoders if decoder.is_owned]
    for decoder in owned:
        decoder.process.kill()  # one that hangs does not react to a request to end, and none has anything to lose
    for decoder in owned:
        decoder.close()
    decoders.clear()


def stream_images(
    split: Split, order: Tensor, batch_size: int, device: torch.device, workers: int, loader_seconds: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a split, decoded by processes that end with the last one; see `DecoderPool.stream`."""
    with closing(DecoderPool()) as pool:
        yield from pool.stream(split, order, batch_size, device, workers, loader_seconds)


class _Decoder:
    """A process that decodes batches, and the thread of this process that receives them.

    Attributes:
        process: the process.
    """

    def __init__(self, store: ImageStore, slot: int):
        # Two pipes: pixels take twice as long through one that carries both directions
        self._pipe, answers = multiprocessing.Pipe(duplex=False)
        requests, self._requests = multiprocessing.Pipe(duplex=False)
        # Indices go by shared memory, for a pipe that is full would block this process, unwatched
        memory = multiprocessing.RawArray("q", PREFETCHED * slot)
        self._slots, self._asked = _slots(memory), 0
        self._outcomes: queue.SimpleQueue[Tensor | BaseException | None] = queue.SimpleQueue()  # None: it has ended
        self._messages, self._expected = 0, deque[tuple[tuple[int, ...], bool]]()  # shapes, and whether pinned
        self._shape, self._owner = store.shape, os.getpid()
        self.process = multiprocessing.Process(
            target=_serve, args=(store, memory, requests, answers, os.getpid()), name="decoder", daemon=True
        )
        self.process.start()
        requests.close()
        answers.close()
        self._thread = threading.Thread(target=self._receive, name="decoder", daemon=True)
        self._thread.start()

    @property
    def is_owned(self) -> bool:
        """Whether this process has started it, and is no copy of the one that has."""
        return self._owner == os.getpid()

    def can_decode(self, batch_size: int) -> bool:
        """Whether the process can serve a pass with batches of this size."""
        return self.is_owned and self._slots.shape[1] >= batch_size and self.process.is_alive()

    def ask(self, indices: Indices, *, pinned: bool) -> None:
        """Let the process decode one batch more, when it has decoded those before; at most PREFETCHED wait."""
        channels, height, width = self._shape
        number = self._asked % PREFETCHED
        self._slots[number, : len(indices)] = indices
        self._expected.append(((len(indices), height, width, channels), pinned))
        self._asked += 1
        with suppress(OSError):  # it has ended; the thread finds out how
            self._requests.send((number, len(indices)))

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
                return outcome
            if outcome is None:
                self.process.join(END_SECONDS)
                raise RuntimeError(f"a process that decodes images ended with exit code {self.process.exitcode}")
            raise outcome

    def _receive(self) -> None:
        """Take the messages until the process ends, in the thread: a process may stop in the middle of a message."""
        try:
            while True:
                while (kind := self._pipe.recv_bytes()) == _HEARTBEAT:
                    self._messages += 1
                if kind != _IMAGES:
                    content = self._pipe.recv_bytes()
                    self._outcomes.put(InputError(content.decode()) if kind == _WRONG_INPUT else pickle.loads(content))
                    return
                shape, pinned = self._expected.popleft()
                images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
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


def _slots(memory: Any) -> Indices:
    """Shared memory as int64 (PREFETCHED, slot)."""
    return np.frombuffer(memory, np.int64).reshape(PREFETCHED, -1)


class _Heartbeat:
    """Sends a message of progress, but not at every image."""

    def __init__(self, pipe: Connection):
        self._pipe, self._sent_at = pipe, -HEARTBEAT_SECONDS

    def __call__(self) -> None:
        if time.monotonic() - self._sent_at >= HEARTBEAT_SECONDS:
            self._pipe.send_bytes(_HEARTBEAT)
            self._sent_at = time.monotonic()


def _serve(store: ImageStore, memory: Any, requests: Connection, answers: Connection, parent: int) -> None:
    """Decode batches, each when it is asked for; the process's main function."""
    exit_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    slots = _slots(memory)
    with READING.told_to(_Heartbeat(answers)):
        while True:  # until it is killed
            number, count = requests.recv()
            kind, content = _decode(store, slots[number, :count].copy())
            answers.send_bytes(kind)
            answers.send_bytes(content)


def _decode(store: ImageStore, indices: Indices) -> tuple[bytes, Any]:
    """A batch as a message: its kind and its content."""
    try:
        return _IMAGES, np.ascontiguousarray(store.decode(indices, threads=1)).data.cast("B")
    except LowrankError as error:
        return _WRONG_INPUT, str(error).encode()
    except Exception as error:
        return _ERROR, pickle.dumps(error)
