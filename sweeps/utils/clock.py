"""The time of the records: read from the system when the program starts, then carried on by a clock that nobody sets.

A system's clock jumps: it is set by hand, by a time server, or when a virtual machine wakes up. Records are sorted by
their times and MLflow keys metrics by them, so their time must never go back and never leap.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def monotonic_time() -> float:
    """Return a time that only rises and that nobody sets.

    Returns:
        Seconds since the machine started; time asleep counts where the system can tell.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


# Taken at import: the commands import this module before anything that takes long
PROCESS_START = monotonic_time()


class Clock:
    """Gives seconds since the epoch that never go back.

    Args:
        wall: gives seconds since the epoch; called once.
        monotonic: gives seconds since any fixed moment; sets the pace.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = monotonic_time):
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._monotonic() + self._offset

    def advance_to(self, seconds: float) -> None:
        """Never again give a time before `seconds`, which an earlier program with a fast clock has recorded.

        Args:
            seconds: since the epoch.
        """
        self._offset += max(0.0, seconds - self.now())
