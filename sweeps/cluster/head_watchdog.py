"""Notices that the cluster's head is gone. Ray itself waits for a minute and then ends the process in mid-sentence."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

from rich.console import Console

from lowrank.utils.cli import ExitCode
from sweeps.utils.clock import steady
from sweeps.utils.signals import told_to_end

SILENCE = 20.0  # seconds without an answer after which the head counts as gone; Ray gives up after 60
EVERY = 2.0
ANSWER_SECONDS = 3.0


class HeadWatch:
    """Asks the head of the cluster at HOST:PORT again and again; use as a context manager around what needs it.

    When the head is gone the process ends with one line: the driver's main thread waits for the cluster and would
    wait for ever. For the study that is the same as a kill of the driver. A SIGTERM to all processes of the command, as
    a batch system sends it, ends the head of a cluster of its own too.
    """

    def __init__(self, address: str, study: str, end: Callable[[int], None] = os._exit):
        self.address, self._study, self._end = address, study, end
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)

    def __enter__(self) -> HeadWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        heard = steady()
        while not self._left.wait(EVERY):
            if self._answers():
                heard = steady()
            elif told_to_end():
                self._leave(ExitCode.INTERRUPTED, "interrupted, and so was Ray")
                return
            elif steady() - heard > SILENCE:
                self._leave(ExitCode.HEAD_LOST, f"error: the cluster's head at {self.address} is gone")
                return

    def _leave(self, code: int, why: str) -> None:
        Console().show_cursor()  # a live view has hidden it
        print(f"{why}; nothing is lost, go on with --resume {self._study}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._end(code)

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except OSError:
            return False
        return True
