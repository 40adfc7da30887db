"""A line says where each process compiles the modules of libraries again."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

import pytest

from sweeps.utils import missing_bytecode


def library(cached: Path) -> ModuleType:
    """A module that Python would keep compiled in this file."""
    module = ModuleType("library")
    module.__spec__ = ModuleSpec("library", None)
    module.__spec__.cached = str(cached)
    return module


@pytest.mark.parametrize("unset", [True, False])
def test_a_library_without_compiled_modules_is_named_with_the_cause(unset, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", not unset)
    line = missing_bytecode(library(tmp_path / "library.pyc"))
    assert line is not None
    assert ("PYTHONDONTWRITEBYTECODE is set; unset it" in line) != unset
    assert f"{tmp_path} cannot be written" in line
    assert "PYTHONPYCACHEPREFIX" in line
    assert len(line.splitlines()) == 1


def test_a_library_whose_compiled_modules_are_there_is_not_named(tmp_path):
    (tmp_path / "library.pyc").touch()
    assert missing_bytecode(library(tmp_path / "library.pyc")) is None
    assert missing_bytecode(ModuleType("made in memory")) is None


def test_python_is_asked_where_it_keeps_a_compiled_module(tmp_path, monkeypatch):
    (tmp_path / "small_library.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    imported = importlib.import_module("small_library")
    del sys.modules["small_library"]
    assert missing_bytecode(imported) is None
    Path(cache_from_source(str(tmp_path / "small_library.py"))).unlink()
    assert missing_bytecode(imported) is not None
