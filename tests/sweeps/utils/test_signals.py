"""SIGTERM is treated as Ctrl-C, and an interruption that somebody caught is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lowrank.utils import ExitCode
from sweeps.utils import signals


@pytest.fixture
def restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._interrupted.clear()
    signals._sigterm_received.clear()


@pytest.mark.parametrize(("number", "terminated"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_both_signals_interrupt_and_are_remembered(restored, number, terminated):
    signals.install_signal_handlers()
    signals.raise_if_interrupted()  # nothing has come yet
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals.sigterm_received() is terminated
    with pytest.raises(KeyboardInterrupt):
        signals.raise_if_interrupted()


def test_installing_again_forgets_an_earlier_interruption(restored):
    signals.install_signal_handlers()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signals.install_signal_handlers()
    assert not signals.sigterm_received()
    signals.raise_if_interrupted()


def test_sigterm_is_left_alone_where_no_handlers_were_installed(restored):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    signals.handle_sigterm()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_installs_nothing(restored):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=signals.install_signal_handlers)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_process_ends_with_its_code():
    with pytest.raises(SystemExit) as end:
        signals.exit_process(2)
    assert end.value.code == 2


@pytest.mark.parametrize("exit_code", [ExitCode.INTERRUPTED, ExitCode.STUDY_LOST])
def test_after_an_interruption_the_process_ends_at_once_with_all_that_was_printed(exit_code):
    """Neither the interpreter's shutdown nor a second Ctrl-C gets in its way; Ray is shut down first."""
    code = """
import atexit, os, signal, sys, types
from sweeps.utils.signals import exit_process, install_signal_handlers
install_signal_handlers()
def shutdown():
    signal.raise_signal(signal.SIGINT)
    print("ray", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
sys.modules["ray"] = types.SimpleNamespace(shutdown=shutdown)
atexit.register(lambda: print("the interpreter's shutdown"))
exit_process(int(sys.argv[1]))
"""
    command = [sys.executable, "-c", code, str(int(exit_code))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "ray True\n", "")
