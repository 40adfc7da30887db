"""Where Triton cannot compile in threads no kernel is compiled beforehand; the rest is tested on a GPU."""

from __future__ import annotations

import sys

import pytest

from lowrank.kernels import compile_side_by_side, side_by_side


@pytest.mark.parametrize("installed", [False, True])
def test_without_triton_or_with_another_version_nothing_runs(installed, monkeypatch):
    monkeypatch.setattr(side_by_side, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setitem(sys.modules, "triton.runtime._async_compile", None)  # its import raises ImportError
    assert compile_side_by_side(lambda: pytest.fail("it ran")) == 0
