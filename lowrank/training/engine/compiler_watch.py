"""Ends a compiler that hangs, so that training goes on without it.

The network's compiler runs programs (g++, ptxas, its own helper processes) and waits for them without any limit. How
long they take says nothing: networks are large or small, machines idle or crowded. What counts is whether this process
and its programs use any processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowrank.training.engine.compiled_forward import NotCompilableError
from lowrank.utils import ProcessorWatch, child_processes

HANG_SECONDS = 600.0  # without progress, after which the compiler's programs are killed
RESOURCE_TRACKER = b"multiprocessing.resource_tracker"  # in the command line of that process


@contextmanager
def watch_compiler() -> Iterator[None]:
    """Kill the programs that the compiler waits for if they hang while the block runs.

    They are all processes below this one, except those that this process has started through `multiprocessing`, which
    decode images, and the one that `multiprocessing` itself runs to release shared memory.

    Yields:
        Nothing.

    Raises:
        NotCompilableError: the block failed after programs were killed.
    """
    watch = _Watch()
    thread = threading.Thread(target=watch.run, name="compiler-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if watch.has_killed:
            raise NotCompilableError(f"the compiler did nothing for {HANG_SECONDS:.0f} s and was ended") from error
        raise
    finally:
        watch.end.set()
        thread.join()


class _Watch:
    """Looks at the processor time until `end` is set.

    Attributes:
        has_killed: whether programs were killed.
    """

    def __init__(self) -> None:
        self.end, self.has_killed = threading.Event(), False

    def run(self) -> None:
        """Kill the programs whenever there was no progress for `HANG_SECONDS`."""
        watch = ProcessorWatch(HANG_SECONDS, [os.getpid()])
        while not self.end.wait(watch.poll_seconds):
            if watch.is_idle():
                self._kill()
                watch = ProcessorWatch(HANG_SECONDS, [os.getpid()])

    def _kill(self) -> None:
        others = {process.pid for process in multiprocessing.active_children() if process.pid is not None}
        for pid in child_processes(os.getpid(), without=others):
            with suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
                if RESOURCE_TRACKER not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.has_killed = True
