"""A compiler that hangs is ended and training goes on without it; one that works is left alone."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
import warnings
from multiprocessing import resource_tracker

import pytest

from lowrank.training.engine import compiler_watch
from lowrank.training.engine.compiled_forward import NotCompilableError
from lowrank.training.engine.compiler_watch import watch_compiler
from lowrank.utils import processes

HANGING = ["sh", "-c", "sleep 600 & wait"]  # a program that has started another


def test_a_program_that_does_nothing_is_killed_with_all_that_it_started(monkeypatch):
    monkeypatch.setattr(compiler_watch, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(processes, "MIN_SHARE", 0.5)  # the tests themselves use some processor time
    decoder = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    decoder.start()
    try:
        message = r"^the compiler did nothing for 0 s and was ended$"
        with pytest.raises(NotCompilableError, match=message) as raised, watch_compiler():
            subprocess.run(HANGING, check=True)
        assert raised.value.__cause__.returncode == -9
        assert decoder.is_alive()  # it decodes images for the next batch
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resource_tracker.ensure_running()  # warns if it had to be started again
    finally:
        decoder.kill()
        decoder.join()


def test_an_error_of_the_compiler_itself_stays_as_it_is():
    with pytest.raises(ZeroDivisionError), watch_compiler():
        raise ZeroDivisionError
