"""Ctrl-C and SIGTERM, remembered: a library that swallows a KeyboardInterrupt cannot hide that there was one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from lowrank.utils import ExitCode

_interrupted = threading.Event()
_sigterm_received = threading.Event()


def install_signal_handlers() -> None:
    """Remember every Ctrl-C and treat SIGTERM as one; only in the main thread."""
    if threading.current_thread() is threading.main_thread():
        _interrupted.clear()
        _sigterm_received.clear()
        signal.signal(signal.SIGINT, _on_sigint)
        handle_sigterm()


def handle_sigterm() -> None:
    """Treat SIGTERM, which `kill`, `timeout` and batch systems send, as Ctrl-C.

    It does so only where `install_signal_handlers` was called. Call it again whenever Ray takes the signal for itself,
    as it does while it starts: its handler would end the process at once.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _on_sigint:
        signal.signal(signal.SIGTERM, _on_sigterm)


def sigterm_received() -> bool:
    """Tell whether a SIGTERM has come, which Ray's processes may have received too.

    Returns:
        Whether there was one since `install_signal_handlers`.
    """
    return _sigterm_received.is_set()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _sigterm_received.set()
    signal.raise_signal(signal.SIGINT)


def _on_sigint(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt again after an earlier Ctrl-C, whoever has caught it.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C or a SIGTERM.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt


def exit_process(code: int) -> NoReturn:
    """End the process.

    After a Ctrl-C, and where a lost study has interrupted the main thread as Ctrl-C does, it ends without the
    interpreter's own shutdown, which may crash over a half-started Ray and so end with another code.

    Args:
        code: the exit code.
    """
    if code not in (ExitCode.INTERRUPTED, ExitCode.STUDY_LOST):
        sys.exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process should Ray's shutdown hang
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "shutdown"):
        ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
