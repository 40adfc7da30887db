"""Whether this process gets on with reading a data set: what reads counts, what waits looks at the count.

A reader that hangs, on a file system that does not answer, is known by its lack of progress. How long a batch or a file
takes says nothing: batches are large or small, disks fast or slow, machines idle or crowded.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lowrank.errors import LoaderHungError
from lowrank.utils import IdleWatch

Value = TypeVar("Value")


class ReadingProgress:
    """Counts images, headers and pieces of files that this process has read.

    Attributes:
        count: so many so far; threads that count at once may lose some, which changes nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._listeners: list[Callable[[], None]] = []

    def step(self) -> None:
        """Count one more."""
        self.count += 1
        for listener in tuple(self._listeners):
            listener()

    @contextmanager
    def told_to(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call a function at each step while the block runs.

        Args:
            listener: called without arguments, often and from any thread.

        Yields:
            Nothing.
        """
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


READING = ReadingProgress()
"""The progress of this process."""


def run_watched(function: Callable[[], Value], seconds: float) -> Value:
    """Run a function that reads in a thread, and give up waiting for it when it makes no progress.

    Args:
        function: counts its progress in `READING`.
        seconds: without progress, after which it is given up. Its thread stays: a read that hangs cannot be ended.

    Returns:
        What it returns.

    Raises:
        LoaderHungError: it made no progress for that long.
        BaseException: what the function raised.
    """
    outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put((function(), None))
        except BaseException as error:
            outcomes.put((None, error))

    watch = IdleWatch(seconds, lambda: READING.count)
    threading.Thread(target=run, name="reading", daemon=True).start()
    while True:
        try:
            value, error = outcomes.get(timeout=watch.poll_seconds)
        except queue.Empty:
            if watch.is_idle():
                raise LoaderHungError(f"nothing of the images could be read for {seconds:g} s") from None
            continue
        if error is not None:
            raise error
        return value
