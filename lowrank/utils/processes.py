"""Processes: on how many cores one may run, and children that end with their parent, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROJECT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: object) -> list[str]:
    """Return the command line that runs a module of this project.

    The process needs `module_environment`. Python puts the current folder first on the module path, where a folder of
    the user's may have the name of one of our packages; `-P` leaves it out.

    Args:
        module: its dotted name.
        *arguments: of its command line.

    Returns:
        The words.
    """
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def module_environment(**variables: str) -> dict[str, str]:
    """Return the environment in which a process finds this project.

    Args:
        **variables: further variables.

    Returns:
        This process's environment with the project first on the module path.
    """
    path = os.pathsep.join([str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def usable_cores() -> int:
    """Count the cores that this process may run on.

    Returns:
        At least 1; smaller than the machine's count under taskset or in a container.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exit_with_parent(parent: int) -> None:
    """Have this process killed as soon as its parent has ended; call it first of all.

    On Linux the kernel does it, even if this process hangs; the parent counts as ended when the thread that started
    this process ends. Elsewhere a thread polls the parent's process id.

    Args:
        parent: process id of the parent.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # the parent ended before the call
            _kill_this_process()
        return
    threading.Thread(target=_watch, args=(parent,), name="parent-death", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    _kill_this_process()


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
