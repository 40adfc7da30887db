"""Kernels are compiled without being launched, and what is launched afterwards is as before.

A stand-in is Triton; the real one is tested on a GPU.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from types import ModuleType
from typing import Any, ClassVar

import pytest

from lowrank.kernels import compile_side_by_side, side_by_side

Launch = tuple[str, bool, bool]  # module of the kernel, whether it is only compiled, whether in threads


class Kernel:
    """A kernel of a module, as Triton's class of that name."""

    launches: ClassVar[list[Launch]] = []
    active_mode: ContextVar[Any] = ContextVar("mode", default=None)

    def __init__(self, module: str):
        self.module = module

    def run(self, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
        mode = self.active_mode.get()
        self.launches.append((self.module, warmup, mode is not None))
        if mode is not None:
            mode.raw_futures.append(mode.executor.submit(int))


class Mode:
    def __init__(self, executor: Any, *, ignore_errors: bool):
        self.executor, self.ignore_errors = executor, ignore_errors
        self.raw_futures: list[Any] = []
        self.future_kernels: dict[str, Any] = {}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the stand-in launches."""
    jit, threads = ModuleType("triton.runtime.jit"), ModuleType("triton.runtime._async_compile")
    jit.JITFunction, threads.AsyncCompileMode, threads.active_mode = Kernel, Mode, Kernel.active_mode  # type: ignore[attr-defined]
    for module in (ModuleType("triton"), ModuleType("triton.runtime"), jit, threads):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(side_by_side, "find_spec", lambda name: object())
    monkeypatch.setattr(Kernel, "launches", [])
    return Kernel.launches


OURS, OTHERS = Kernel("lowrank.kernels.depthwise"), Kernel("torch_compile.kernels")


def test_only_this_projects_kernels_are_compiled_and_not_launched(launches: list[Launch]) -> None:
    def run() -> None:
        OURS.run(grid=(1,), warmup=False)
        OTHERS.run(grid=(1,), warmup=False)

    assert compile_side_by_side(run) == 1
    assert launches == [(OURS.module, True, True), (OTHERS.module, False, False)]


def test_kernels_of_a_method_are_this_projects_too(launches: list[Launch]) -> None:
    of_a_method = Kernel("lowrank.layers.acdc.triton")
    assert compile_side_by_side(lambda: of_a_method.run(grid=(1,), warmup=False)) == 1
    assert launches == [(of_a_method.module, True, True)]


@pytest.mark.parametrize("error", [None, KeyError("of a step")])
def test_kernels_are_launched_again_afterwards_even_after_an_error(
    error: Exception | None, launches: list[Launch]
) -> None:
    def run() -> None:
        OURS.run(grid=(1,), warmup=False)
        if error is not None:
            raise error

    if error is None:
        compile_side_by_side(run)
    else:
        with pytest.raises(KeyError):
            compile_side_by_side(run)
    OURS.run(grid=(1,), warmup=False)
    assert launches == [(OURS.module, True, True), (OURS.module, False, False)]


@pytest.mark.parametrize("installed", [False, True])
def test_without_triton_or_with_another_version_nothing_runs(installed, monkeypatch):
    monkeypatch.setattr(side_by_side, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setitem(sys.modules, "triton.runtime._async_compile", None)  # its import raises ImportError
    assert compile_side_by_side(lambda: pytest.fail("it ran")) == 0
