"""Signs of life of processes that train a trial together, by files that they touch.

A stopped process touches its file no more. One that takes no step within an epoch for much longer than its steps took
before says so by another file: it waits for another process, for a device or for images, and processor time would not
show that, because a program that waits for a GPU computes all the while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BEAT_SECONDS = 1.0  # between two signs of life
# Without a sign of life, or a step, after which a process is given up: as long again is left of the minute within which
# its trial should train in new processes
HANG_SECONDS = 30.0
SLOW_STEP = 20.0  # times the slowest step of the epoch so far, after which a step is given up


class StepWatch:
    """Decides whether a training goes on, by its count of steps.

    Args:
        patience: seconds without a step that are always allowed.
        clock: gives seconds.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic):
        self._patience, self._clock = patience, clock
        self._steps: int | None = None
        self._changed, self._slowest = clock(), 0.0

    def goes_on(self, steps: int | None) -> bool:
        """Look at the count.

        Args:
            steps: of the present epoch; None outside of one. The first step may take as long as it likes: it compiles.

        Returns:
            False if no step has ended for much longer than the slowest one took.
        """
        now = self._clock()
        if steps != self._steps or not steps:
            if steps and self._steps and steps > self._steps:
                self._slowest = max(self._slowest, (now - self._changed) / (steps - self._steps))
            elif not steps:
                self._slowest = 0.0
            self._steps, self._changed = steps, now
        return now - self._changed <= max(self._patience, SLOW_STEP * self._slowest)


def start_heartbeat(path: Path, is_alive: Callable[[], bool]) -> None:
    """Touch a file every BEAT_SECONDS, from a thread that ends with the process.

    Args:
        path: the file; it exists when the call returns.
        is_alive: asked before each touch; where it says no, the file of `hang_path` is touched instead.
    """
    path.touch()

    def beat() -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                (path if is_alive() else hang_path(path)).touch()
            except OSError:  # the folder goes when the group ends
                return

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def heartbeat_path(folder: Path, index: int) -> Path:
    """Return the file that a process of a group touches.

    Args:
        folder: of the group.
        index: of the process.
    """
    return folder / f"heartbeat-{index}"


def hang_path(path: Path) -> Path:
    """Return the file by which a process says that its training hangs.

    Args:
        path: from `heartbeat_path`.
    """
    return path.with_suffix(".hangs")


class HeartbeatWatch:
    """Watches files that processes touch.

    Args:
        paths: one of each process; one that does not exist yet is not watched.
        patience: seconds without a touch after which a process is silent.
        clock: gives seconds.
    """

    def __init__(self, paths: Sequence[Path], patience: float, clock: Callable[[], float] = time.monotonic):
        self._paths, self._patience, self._clock = paths, patience, clock
        self._seen = [(self._touched(path), clock()) for path in paths]

    def silent(self, patience: float | None = None) -> int | None:
        """Look at the files.

        Args:
            patience: seconds; None for those of the watch.

        Returns:
            The index of the first process that says that it hangs, else of that which has been silent for longest, if
            longer than `patience`; None if none has.
        """
        patience = self._patience if patience is None else patience
        for index, path in enumerate(self._paths):
            if hang_path(path).exists():
                return index
        now = self._clock()
        for index, path in enumerate(self._paths):
            touched = self._touched(path)
            if touched is None or touched != self._seen[index][0]:
                self._seen[index] = touched, now
        since = [seen for _, seen in self._seen]
        return since.index(min(since)) if since and now - min(since) > patience else None

    @staticmethod
    def _touched(path: Path) -> int | None:
        """When a file was last touched, by the file system's clock: only a change counts."""
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return None
