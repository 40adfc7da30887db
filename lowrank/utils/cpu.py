"""The number of CPU cores, without torch: commands that only read and draw need it too."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Count the cores that this process may run on.

    Returns:
        At least 1; smaller than the machine's count under taskset or in a container.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
