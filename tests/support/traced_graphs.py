"""Compiled training and evaluation without a compiler: what is traced runs as it was traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lowrank.training.engine import compiled_forward


@contextmanager
def graphs_without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Networks are traced as ever while the block runs; gives what was traced."""
    traced: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled_forward, "_COMPILED", type(compiled_forward._COMPILED)())
    monkeypatch.setattr(compiled_forward, "compile_graph", keep)
    monkeypatch.setattr(compiled_forward, "compile_obstacle", lambda device: None)
    yield traced
    torch._dynamo.reset()
