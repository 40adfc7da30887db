"""A line says where each process compiles the modules of libraries again."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
    assert missing_bytecode(torch) is None
