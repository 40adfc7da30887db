"""Where Triton is not installed no kernel is compiled beforehand; the rest is tested on a GPU."""

from __future__ import annotations

import pytest

from lowrank.kernels import compile_side_by_side, side_by_side


def test_without_triton_nothing_runs(monkeypatch):
    monkeypatch.setattr(side_by_side, "find_spec", lambda name: None)
    assert compile_side_by_side(lambda: pytest.fail("it ran")) == 0
