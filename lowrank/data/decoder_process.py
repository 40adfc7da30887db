"""A process that decodes the images of a store, batch after batch, and is watched by its progress.

A process of torch's DataLoader that stops, even while it hands over a batch, can only be ended through its private
attributes, and whether it hangs or only takes long cannot be told. So the processes are our own: each decodes what it
is asked for, says by a short message that it gets on, and sends the pixels through a pipe that a thread reads.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank.data.reading.image_codec import Pixels
from lowrank.data.reading.image_store import SMALL_IMAGE, ImageStore
from lowrank.data.reading_progress import READING
from lowrank.data.splits import Indices
from lowrank.errors import InputError, LoaderHungError, LowrankError
from lowrank.utils import IdleWatch, exit_with_parent, usable_cores

PREFETCHED = 2  # batches of a process that it can be asked for before the first is taken
HEARTBEAT_SECONDS = 0.1  # at least, between two messages of progress
END_SECONDS = 5.0  # for a killed process to end; one that waits for a disk may not
HUNG_SECONDS = 60.0  # without progress of a process that decodes images that stay in memory
MIN_IMAGES = 2048  # for each process that decodes those: fewer take less time than to start it
_BATCH = 512
_HEARTBEAT, _IMAGES, _WRONG_INPUT, _ERROR = b"h", b"i", b"w", b"e"  # kinds of messages


def decode_all(store: ImageStore, indices: Indices, cores: int | None = None) -> Pixels:
    """Decode images once, small ones by several processes: that is mostly Python, which threads of one do in turns.

    Args:
        store: has the images. Groups of them that this process holds in memory are shared, not read again.
        indices: global indices, int64 (n,).
        cores: to decode on, at most; None for all that this process may use.

    Returns:
        uint8 (n, H, W, C).

    Raises:
        InputError: an image cannot be read.
        LoaderHungError: a process made no progress for `HUNG_SECONDS`.
    """
    channels, height, width = store.shape
    most = usable_cores()
    count = min(cores or most, most, len(indices) // MIN_IMAGES)
    may_start = not multiprocessing.current_process().daemon  # such a process may have none of its own
    if count < 2 or height * width >= SMALL_IMAGE or not may_start:
        return store.decode(indices, cores)
    pixels = np.empty((len(indices), height, width, channels), np.uint8)
    parts = np.array_split(np.argsort(indices, kind="stable"), count)  # neighbours are read together
    batches = [[part[start : start + _BATCH] for start in range(0, len(part), _BATCH)] for part in parts]
    decoders: list[DecoderProcess] = []

    def ask(number: int, batch: int) -> None:
        if batch < len(batches[number]):
            decoders[number].ask(indices[batches[number][batch]], pinned=False)

    try:
        for number in range(count):
            decoders.append(DecoderProcess(store, _BATCH))
            for batch in range(PREFETCHED):
                ask(number, batch)
        for batch in range(max(map(len, batches))):
            for number in range(count):
                if batch < len(batches[number]):
                    pixels[batches[number][batch]] = decoders[number].next(HUNG_SECONDS).numpy()
                    READING.step()
                    ask(number, batch + PREFETCHED)
    finally:
        end_decoders(decoders)
    return pixels


def end_decoders(decoders: list[DecoderProcess]) -> None:
    """Kill processes and wait for their end; those of the process that this one is a copy of go on."""
    owned = [decoder for decoder in decoders if decoder.is_owned]
    for decoder in owned:
        decoder.process.kill()  # one that hangs does not react to a request to end, and none has anything to lose
    for decoder in owned:
        decoder.close()
    decoders.clear()


class DecoderProcess:
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
