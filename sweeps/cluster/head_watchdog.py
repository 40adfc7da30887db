"""Ends the driver with exit code 4 when the head of the Ray cluster has been unreachable for 20 s.

Ray itself aborts the process after 60 s without a message that says what to do.
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
    """Checks again and again that the head of a cluster answers; a context manager.

    The driver's main thread waits for the cluster and would wait for ever, so that a thread ends the process, after it
    has closed the study's records. A batch system that ends a job sends SIGTERM to all its processes; a head that was
    started by this process is then lost too.
    """

    def __init__(
        self, address: str, command: str, close_records: Callable[[], str | None] = lambda: None,
        end_process: Callable[[int], None] = os._exit,
    ):  # fmt: skip
        """Prepare the watch; it begins with the block.

        Args:
            address: HOST:PORT of the head.
            command: the one that goes on with the study, for the message.
            close_records: closes the records; returns a line that says what is not stored. It has CLOSE_SECONDS.
            end_process: takes the exit code.
        """
        self.address, self._command = address, command
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
            if self._answers():
                last_answer = monotonic_time()
            elif sigterm_received():
                self._end(ExitCode.INTERRUPTED, "interrupted, and so was Ray")
                return
            elif monotonic_time() - last_answer > SILENCE_SECONDS:
                self._end(ExitCode.HEAD_LOST, f"error: the cluster's head at {self.address} is gone")
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

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError:
            return False
        return True
