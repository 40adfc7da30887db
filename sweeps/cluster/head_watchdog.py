"""Ends the driver with exit code 4 when the head of the Ray cluster, or Ray beside the driver, is gone for 20 s.

Without a head Ray itself aborts the process after 60 s, without a message that says what to do. Without the raylet of
its own machine, which starts its tasks, a driver waits for ever.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

from rich.console import Console

from lowrank.utils import ExitCode
from sweeps.utils import monotonic_time, sigterm_received

SILENCE_SECONDS = 20.0  # without an answer the head then counts as lost; Ray gives up after 60
CHECK_SECONDS = 2.0  # between two checks
CONNECT_SECONDS = 3.0
SUSPENDED_SECONDS = 10.0  # between two checks of a process that was asleep meanwhile: twice what they take at most
CLOSE_SECONDS = 20.0  # to close the records and store what came last


class HeadWatchdog:
    """Checks again and again that Ray answers; a context manager.

    That is the head of a cluster, and the raylet on the driver's machine. The driver's main thread waits for the
    cluster and would wait for ever, so that a thread ends the process, after it has closed the study's records. A batch
    system that ends a job sends SIGTERM to all its processes; a head that was started by this process is then lost too.
    """

    def __init__(
        self, address: str, command: str, close_records: Callable[[], str | None] = lambda: None,
        end_process: Callable[[int], None] = os._exit, raylet: str | None = None,
    ):  # fmt: skip
        """Prepare the watch; it begins with the block.

        Args:
            address: HOST:PORT of the head.
            command: the one that goes on with the study, for the message.
            close_records: closes the records; returns a line that says what is not stored. It has CLOSE_SECONDS.
            end_process: takes the exit code.
            raylet: HOST:PORT of the raylet on this machine; None where none is watched.
        """
        self.address, self.raylet, self._command = address, raylet, command
        self._close_records, self._end_process = close_records, end_process
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="head", daemon=True)

    def __enter__(self) -> HeadWatchdog:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        last_answer = last_check = monotonic_time()
        while not self._stop.wait(CHECK_SECONDS):
            if monotonic_time() - last_check > SUSPENDED_SECONDS:
                last_answer = monotonic_time()  # a head that was not asked was not silent
            last_check = monotonic_time()
            lost = self._lost()
            if lost is None:
                last_answer = monotonic_time()
            elif sigterm_received():
                self._end(ExitCode.INTERRUPTED, "interrupted, and so was Ray")
                return
            elif monotonic_time() - last_answer > SILENCE_SECONDS:
                self._end(ExitCode.HEAD_LOST, f"error: {lost} is gone")
                return

    def _end(self, code: int, reason: str) -> None:
        Console().show_cursor()  # the progress view has hidden it
        print(f"{reason}; {self._close()}, go on with: {self._command}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._end_process(code)

    def _close(self) -> str:
        """Close the records within CLOSE_SECONDS; returns what to say of them."""
        messages: list[str | None] = []
        thread = threading.Thread(target=lambda: messages.append(self._close_records()), name="close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)
        if not messages:
            return f"what came last was not stored within {CLOSE_SECONDS:.0f} s and is in the study's folder alone"
        return messages[0] or "nothing is lost"

    def _lost(self) -> str | None:
        """Say which of both does not answer; None if both do."""
        if not self._answers(self.address):
            return f"the cluster's head at {self.address}"
        if self.raylet is not None and not self._answers(self.raylet):
            return f"Ray on the driver's machine, at {self.raylet},"
        return None

    def _answers(self, address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError:
            return False
        return True
