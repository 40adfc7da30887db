"""Filling the teacher cache beforehand: progress comes through Ray, and a task that hangs is given up."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from rich.console import Console

from lowrank.data import ImageData
from lowrank.errors import HungError
from sweeps.records.journal import Journal
from sweeps.records.model import StudyRecord
from sweeps.resources.shares import Share
from sweeps.search.optuna_proposer import make_proposer
from sweeps.search.search import Search
from sweeps.space.parse import parse_space
from sweeps.teachers import prebuild_cache
from sweeps.teachers.cache_options import NO_CACHE, CacheOptions
from sweeps.teachers.prebuild_cache import build_caches, cached_specifications
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher
from tests.support.teachers import small_data, write_teacher


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


class InlineRay:
    """Stands for Ray: a task runs in this process when it is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: list[dict[str, Any]] = []
        for name in ("remote", "wait", "get"):
            monkeypatch.setattr(prebuild_cache.ray, name, getattr(self, name))

    def remote(self, target: Any) -> Any:
        def options(**fields: Any) -> Any:
            self.options.append(fields)
            return SimpleNamespace(remote=lambda *arguments: self.handle(target(*arguments)))

        return SimpleNamespace(options=options)

    def handle(self, outcome: Any) -> Any:
        if not isinstance(outcome, prebuild_cache._Progress):
            return outcome
        methods = {name: SimpleNamespace(remote=getattr(outcome, name)) for name in ("report", "state")}
        self.progress = outcome
        return SimpleNamespace(**methods)

    def wait(self, handles: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return handles, []

    def get(self, handle: Any) -> Any:
        return handle


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


@pytest.fixture
def search(data: ImageData, tmp_path: Path):
    """Opens a search whose students have a teacher."""
    write_teacher(tmp_path / "teachers", "good", data)
    journals = []

    def opened(**sections: Any) -> Search:
        space = parse_space("small", {
            "question": "Which?", "data": {"train_images": 200}, "network": {"name": "wrn_10_1", "width": 0.5},
            "teacher": "good", "references": [], "method": {"name": "bottleneck", "rank_scale": 0.4},
            "train": {"epochs": 2, "batch_size": 64, "attention_weight": {"choice": [0, 60]}},
            "search": {"sampler": "grid"}, **sections,
        })  # fmt: skip
        journals.append(Journal(tmp_path / "journal.jsonl"))
        resolver = Resolver(space, data, resolve_teacher(space, data, tmp_path / "teachers"))
        return Search(space, resolver, make_proposer(space, tmp_path, resolver.points), journals[-1], StudyRecord())

    yield opened
    for journal in journals:
        journal.close()


def test_students_that_read_one_cache_are_one_specification_with_the_most_epochs(search):
    grid = search(train={
        "epochs": {"choice": [2, 3]}, "batch_size": 64, "attention_weight": {"choice": [0, 30, 60]},
        "lr": {"choice": [0.1, 0.2]},
    })  # fmt: skip
    (specification,) = cached_specifications(grid)
    assert specification.cache_epochs == 3
    assert specification.teacher.name == "good"


def test_a_sampler_is_foreseen_with_the_largest_weight_of_the_teacher(search):
    """A weight of 0 would mean that no student needs the cache."""
    train = {"epochs": 2, "batch_size": 64, "attention_weight": {"uniform": [0, 60]}}
    (specification,) = cached_specifications(search(train=train, search={"sampler": "random", "trials": 3}))
    assert specification.train.attention_weight == 60


def test_each_cache_is_filled_with_the_share_of_a_trial_and_a_second_time_is_ready(search, tmp_path, monkeypatch):
    ray, opened, options = InlineRay(monkeypatch), search(), CacheOptions(root=tmp_path / "cache")
    config, output = SimpleNamespace(data_dir=None), io.StringIO()
    build_caches(opened, options, config, Share(2, 0, 1), Console(file=output))
    assert ray.options == [{"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 0, "max_retries": 1}]
    assert ray.progress.state()[1] == 2  # cache epochs
    assert "teacher" in output.getvalue()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"}
    assert files
    build_caches(opened, options, config, Share(2, 0, 1), Console(file=io.StringIO()))
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_without_a_cache_nothing_is_started(search, monkeypatch):
    ray = InlineRay(monkeypatch)
    build_caches(search(), NO_CACHE, SimpleNamespace(data_dir=None), Share(1, 0, 1))
    assert ray.options == []


def test_a_cache_that_cannot_be_filled_is_a_line_and_no_end_of_the_study(search, tmp_path, monkeypatch):
    InlineRay(monkeypatch)
    output = io.StringIO()

    def fail(handle: Any) -> Any:
        raise RayTaskError("_fill", "Traceback\nOSError: the disk is full\n", OSError("the disk is full"))

    monkeypatch.setattr(prebuild_cache.ray, "get", fail)
    config = SimpleNamespace(data_dir=None)
    build_caches(search(), CacheOptions(root=tmp_path / "cache"), config, Share(1, 0, 1), Console(file=output))
    assert output.getvalue() == "no teacher cache yet: OSError: the disk is full\n"
