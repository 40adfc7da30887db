"""The compiler is imported once, in a thread, and nobody imports it beside that thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from lowrank.training.engine import compiler_import
from lowrank.training.engine.compiler_import import begin_compiler_import, wait_for_compiler_import


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch):
    monkeypatch.setattr(compiler_import, "_imports", [])


def test_the_import_begins_once_and_whoever_waits_finds_it_done(tmp_path, monkeypatch):
    (tmp_path / "slow_compiler.py").write_text("import threading\nthread, done = threading.current_thread(), True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(compiler_import, "_MODULES", ("slow_compiler",))
    wait_for_compiler_import()  # of none that has begun: returns
    begin_compiler_import()
    begin_compiler_import()
    wait_for_compiler_import()
    assert len(compiler_import._imports) == 2  # modules, and a hash of Triton's files
    assert compiler_import._imports[1].exception() is None
    imported = sys.modules.pop("slow_compiler")
    assert imported.done
    assert imported.thread is not threading.main_thread()


def test_triton_is_imported_whole_before_a_module_of_it(monkeypatch):
    """Where another thread imports Triton, a module of it alone would be imported in the middle of that, and fail."""
    names: list[str] = []

    def import_module(name: str) -> SimpleNamespace:
        names.append(name)
        return SimpleNamespace(triton_key=lambda: names.append("hash"))

    monkeypatch.setattr(compiler_import, "find_spec", lambda name: object())
    monkeypatch.setattr(compiler_import, "import_module", import_module)
    compiler_import._hash_triton()
    assert names == ["triton", "triton.runtime.cache", "hash"]


def test_the_error_of_an_import_comes_where_the_compiler_is_used(monkeypatch):
    monkeypatch.setattr(compiler_import, "_MODULES", ("no_such_compiler",))
    begin_compiler_import()
    wait_for_compiler_import()
    assert isinstance(compiler_import._imports[0].exception(), ModuleNotFoundError)


def test_a_process_is_forked_only_after_the_import(monkeypatch):
    """In it a module that is half imported would never be whole, and whoever imports it there would wait for ever."""
    hooks: list[Callable[[], None]] = []
    monkeypatch.setattr(os, "register_at_fork", lambda *, before: hooks.append(before))
    monkeypatch.setattr(compiler_import, "_MODULES", ())
    begin_compiler_import()
    begin_compiler_import()
    (before_fork,) = hooks
    going_on: Future[None] = Future()
    monkeypatch.setattr(compiler_import, "_imports", [going_on])
    fork = threading.Thread(target=before_fork)
    fork.start()
    own = threading.Thread(target=before_fork, name="compiler-import_0")  # a fork of the import itself
    own.start()
    own.join(60)
    assert not own.is_alive()
    assert fork.is_alive()
    going_on.set_result(None)
    fork.join(60)
    assert not fork.is_alive()
