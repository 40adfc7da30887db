"""Locks between processes: a file that one process holds at a time; and when a wait is given up.

The kernel releases a lock when its process ends, however it ends. The file itself stays: only the lock on it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import LowrankError

if TYPE_CHECKING:
    from filelock import BaseFileLock

POLL_SECONDS = 0.1


class LockedError(LowrankError):
    """Another process holds a lock, and the time to wait for it is over."""


class IdleWatch:
    """Tells when something that is waited for has made no progress for too long.

    Args:
        seconds: without progress, that are too long. Time in which the machine sleeps does not count.
        progress: returns anything that changes when there is progress.
    """

    def __init__(self, seconds: float, progress: Callable[[], object]):
        self.seconds, self._progress = seconds, progress
        self._last, self._since = progress(), time.monotonic()

    @property
    def poll_seconds(self) -> float:
        """How often to look."""
        return min(1.0, self.seconds / 4)

    def is_idle(self) -> bool:
        """Look; returns whether the last progress is too long ago."""
        current = self._progress()
        if current != self._last:
            self._last, self._since = current, time.monotonic()
        return time.monotonic() - self._since > self.seconds


@contextmanager
def hold_lock(
    path: Path,
    *,
    timeout: float | None = None,
    poll_seconds: float = POLL_SECONDS,
    on_wait: Callable[[], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[BaseFileLock]:
    """Hold the lock of a file within the block.

    Args:
        path: the file, which is made if it is missing; its folder must exist.
        timeout: seconds to wait while another process holds the lock; 0 for none, None for no limit.
        poll_seconds: how often to try again.
        on_wait: called once, if the lock is not free at the first try.
        cancelled: asked at each try; ends the wait when it returns True.

    Yields:
        The lock. Its `release` gives it up before the block ends.

    Raises:
        LockedError: another process holds the lock, and `timeout` is over or `cancelled` has returned True.
        OSError: the file cannot be made, or its file system knows no locks.
    """
    from filelock import FileLock, Timeout  # commands that only print help need not pay for it

    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, timeout, poll_seconds, on_wait, cancelled)
    except Timeout as error:
        raise LockedError(f"{path} is locked by another process") from error
    try:
        yield lock
    finally:
        lock.release()


def _acquire(
    lock: BaseFileLock,
    timeout: float | None,
    poll_seconds: float,
    on_wait: Callable[[], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Take the lock; raises Timeout."""
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
    except Timeout:
        if timeout == 0:
            raise
        if on_wait is not None:
            on_wait()
        seconds = -1 if timeout is None else timeout
        lock.acquire(timeout=seconds, poll_interval=poll_seconds, cancel_check=cancelled)
