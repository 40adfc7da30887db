"""Filling the teacher cache beforehand: progress comes through Ray, and a task that hangs is given up."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from lowrank.errors import HungError
from sweeps.teachers import prebuild_cache


class Ray:
    """Stands for Ray: a task that ends after some looks, an actor that answers, a clock that each look advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int, seconds: float, signs: list[tuple[int, int]]):
        self.remaining, self.seconds, self.signs = looks, seconds, signs
        self.now, self.cancelled, self.actor = 0.0, [], prebuild_cache._Progress()
        for name in ("wait", "get", "cancel"):
            monkeypatch.setattr(prebuild_cache.ray, name, getattr(self, name))
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.handle = SimpleNamespace(state=SimpleNamespace(remote=lambda: "state"))

    def wait(self, handles, timeout):
        if handles == ["state"]:
            return (handles, [])
        self.now += self.seconds
        self.remaining -= 1
        if self.signs:
            count, built = self.signs.pop(0)
            for _ in range(count):
                self.actor.report(built)
        return (handles, []) if self.remaining < 0 else ([], handles)

    def get(self, handle):
        return self.actor.state() if handle == "state" else ["a notice"]

    def cancel(self, task, force):
        self.cancelled.append(task)


def wait(ray: Ray) -> list[str]:
    return prebuild_cache._wait_with_progress("task", ray.handle, 5, Console(file=io.StringIO()))


def test_a_task_that_shows_progress_is_waited_for_however_long_it_takes(monkeypatch):
    ray = Ray(monkeypatch, looks=20, seconds=400.0, signs=[(1, None), (1, 1)] * 10)
    assert wait(ray) == ["a notice"]
    assert ray.cancelled == []


def test_a_task_without_progress_is_given_up(monkeypatch):
    ray = Ray(monkeypatch, looks=20, seconds=400.0, signs=[(1, 1)])
    with pytest.raises(HungError, match="the task that builds it made no progress for 600 s"):
        wait(ray)
    assert ray.cancelled == ["task"]


def test_a_task_has_longer_to_start(monkeypatch):
    assert wait(Ray(monkeypatch, looks=4, seconds=400.0, signs=[])) == ["a notice"]
    with pytest.raises(HungError, match="the task that builds it made no progress for 1800 s"):
        wait(Ray(monkeypatch, looks=20, seconds=400.0, signs=[]))
