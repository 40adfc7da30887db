"""Ctrl-C or SIGTERM, never lost: libraries that swallow a KeyboardInterrupt cannot swallow that it was asked for."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from lowrank.utils.cli import ExitCode

_asked = threading.Event()
_told = threading.Event()  # by SIGTERM


def install_signal_handlers() -> None:
    """From now on a Ctrl-C is remembered as well as raised, and a SIGTERM is one; only for the main thread."""
    if threading.current_thread() is threading.main_thread():
        _asked.clear()
        _told.clear()
        signal.signal(signal.SIGINT, _remember)
        handle_sigterm()


def handle_sigterm() -> None:
    """What `kill`, `timeout` or a batch system sends (SIGTERM) is a Ctrl-C, where that is watched for.

    To be called again after Ray's start, which takes the signal for itself and would end the process where it stands.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _remember:
        signal.signal(signal.SIGTERM, _end)


def sigterm_received() -> bool:
    """Whether a SIGTERM has come, which may have come to Ray's own processes too."""
    return _told.is_set()


def _end(number: int, frame: FrameType | None) -> None:
    _told.set()
    signal.raise_signal(signal.SIGINT)


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt when one was asked for, whoever may have caught it since."""
    if _asked.is_set():
        raise KeyboardInterrupt


def exit_process(code: int) -> NoReturn:
    """End the process; after a Ctrl-C at once, because the interpreter's own end may crash over a half-started Ray."""
    if code != ExitCode.INTERRUPTED:
        sys.exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second ends it, should Ray's own end hang
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "shutdown"):
        ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
