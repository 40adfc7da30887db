"""The time of the records: the system's own when the program starts, carried on by a clock that nobody sets.

A system's clock jumps: it is set by hand, by a time server, by a virtual machine that wakes up. Records are sorted by
their times and MLflow keys metrics by them, so their time never goes back and never leaps.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def steady() -> float:
    """Seconds since the machine started, sleep included where the system can tell; nothing sets it."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


BEGAN = steady()  # of this program, as far as it can tell: the command imports this before all that takes long


class Clock:
    """Seconds since the epoch that only go on, at the pace of `steady`, whatever becomes of the system's clock."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady):
        """`wall` is asked once."""
        self._steady = steady
        self._offset = wall() - steady()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._steady() + self._offset

    def go_on_from(self, seconds: float) -> None:
        """Never again give a time before this one: an earlier program, whose clock was ahead, has given it."""
        self._offset += max(0.0, seconds - self.now())
