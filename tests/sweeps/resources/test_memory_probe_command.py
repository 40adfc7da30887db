"""`--probe-memory`: distinct configurations, what does not fit is named, and the rows are records."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from lowrank.data import ImageData
from lowrank.data.reading.synthetic import DataOutline, synthetic_data
from lowrank.errors import InputError
from lowrank.training.engine.step import TrainStep
from sweeps.records.specification import Trial
from sweeps.records.tables import FAILED, FIT_SCHEMA, FITS, OUT_OF_MEMORY
from sweeps.resources import memory_probe
from sweeps.resources.configurations import configuration, distinct_trials
from sweeps.resources.memory_probe import ProbeTask, make_row, print_rows, probe, write_rows
from sweeps.resources.shares import Share
from sweeps.space.parse import parse_space
from sweeps.space.run_options import RunOptions
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher
from tests.support import studies
from tests.support.teachers import small_data, write_teacher


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


@pytest.fixture
def trials(data: ImageData, tmp_path: Path) -> list[Trial]:
    write_teacher(tmp_path, "good", data)
    space = parse_space("small", {
        "question": "Which?", "data": {"train_images": 200}, "network": {"name": "wrn_10_1", "width": 0.5},
        "teacher": "good", "search": {"sampler": "grid"}, "references": ["dense"],
        "train": {"batch_size": 64, "lr": {"choice": [0.1, 0.2]}, "attention_weight": {"choice": [0, 60]}},
        "method": {"name": "bottleneck", "rank_scale": {"choice": [0.4, 0.8]}},
    })  # fmt: skip
    return distinct_trials(space, Resolver(space, data, resolve_teacher(space, data, tmp_path)))


def config(trial: Trial, outline: DataOutline | None = None) -> ProbeTask:
    return ProbeTask(trial.specification, None, 0.0, outline)


def test_configurations_that_cost_the_same_are_probed_once(trials: list[Trial]) -> None:
    specifications = [trial.specification for trial in trials]
    configurations = [(fields.method.rank_scale, fields.teacher is not None) for fields in specifications]
    assert sorted(configurations, key=str) == [(0.4, False), (0.4, True), (0.8, False), (0.8, True), (None, False)]
    assert [trial.counts["params"] for trial in trials] == sorted(trial.counts["params"] for trial in trials)


@pytest.mark.parametrize(
    ("changed", "alike"),
    [({"lr": 0.3}, True), ({"engine": "compiled"}, False), ({"epochs": 300}, False), ({"batch_size": 32}, False)],
    ids=str,
)
def test_what_a_step_costs_depends_on_how_it_is_run(trials: list[Trial], changed: dict[str, Any], alike: bool) -> None:
    """`auto` looks at how long a trial is."""
    plain = trials[0].specification
    other = plain.with_train(**changed)
    assert (configuration(other) == configuration(plain)) == alike


def test_a_probe_measures_step_and_largest_batch(trials: list[Trial]) -> None:
    measured = probe(config(next(trial for trial in trials if trial.specification.teacher)))
    assert measured["status"] == FITS
    assert measured["images_per_second"] > 0
    assert 64 <= measured["largest_batch"] <= 200


def test_noise_of_the_shape_of_the_data_is_measured_without_loading_it(
    trials: list[Trial], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    outline = pickle.loads(pickle.dumps(DataOutline.of(data)))  # it goes to a worker
    monkeypatch.setattr(memory_probe, "load_trial_data", None)
    measured = probe(config(next(trial for trial in trials if trial.specification.teacher), outline))
    assert measured["status"] == FITS
    assert 64 <= measured["largest_batch"] <= 200
    noise = synthetic_data(outline)
    assert noise is synthetic_data(DataOutline.of(data))
    assert (len(noise.train), noise.image_shape, noise.classes) == (len(data.train), data.image_shape, data.classes)


def test_a_configuration_that_does_not_fit_is_named(
    trials: list[Trial], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    real = TrainStep.backward
    monkeypatch.setattr(
        TrainStep, "backward", lambda self, step, images, *others: (full if len(images) > 16 else real)(
            self, step, images, *others
        ),
    )  # fmt: skip
    share = Share(1, 0, 1)
    rows = [make_row(trial, share, probe(config(trial))) for trial in trials[:1]]
    assert rows[0]["status"] == OUT_OF_MEMORY
    print_rows(rows, share)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("does not fit: bottleneck of ")
    assert "batch 64 (out of memory: CUDA out of memory. Tried to allocate 2 GiB)" in line
    assert line.endswith("; the largest batch that fits is 16")
    assert pq.read_table(write_rows(rows, tmp_path / "fit" / "x.parquet")).schema == FIT_SCHEMA


class InlineRay:
    """Stands for Ray: an actor lives in this process; of its probes the second kills it and the third fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        failure = RayTaskError("probe", "x\nno such file\n", OSError())
        self.started: list[Any] = []
        self.outcomes: list[Exception | None] = [None, ActorDiedError(), failure]
        monkeypatch.setattr(memory_probe.ray, "remote", self.remote)
        monkeypatch.setattr(memory_probe.ray, "get", self.get)

    def remote(self, actor: type) -> Any:
        def start(*arguments: Any) -> Any:
            prober = actor(*arguments)
            self.started.append(prober)
            return SimpleNamespace(probe=SimpleNamespace(remote=lambda task: (prober, task)))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def get(self, call: Any) -> dict[str, Any]:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        prober, task = call
        return dict(prober.probe(task))


def test_a_worker_that_is_killed_is_out_of_memory_and_the_next_one_goes_on(
    trials: list[Trial], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray, warmed = InlineRay(monkeypatch), []
    measured = {
        "device": "X", "status": FITS, "peak_mb": 1234.4, "step_seconds": 0.0125, "images_per_second": 5120.0,
        "largest_batch": 200,
    }  # fmt: skip

    def measure(task: ProbeTask, *, warm_up: bool) -> dict[str, Any]:
        warmed.append(warm_up)
        return {**measured, "limited": len(warmed) > 1, "peak_mb": None if len(warmed) > 1 else measured["peak_mb"]}

    monkeypatch.setattr(memory_probe, "probe", measure)
    rows = memory_probe.probe_trials(trials, Share(1, 0.5, 1), None, quiet=True)
    assert [row["status"] for row in rows] == [FITS, OUT_OF_MEMORY, FAILED, FITS, FITS]
    assert rows[1]["reason"].startswith("the worker was killed: ")
    assert rows[2]["reason"] == "no such file"
    assert len(ray.started) == 2  # a failed probe costs no worker
    assert warmed == [True, True, False]  # the first of each worker
    assert capsys.readouterr().out == ""
    print_rows(rows, Share(1, 0.5, 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "One step each, on X; 1 CPU and 0.5 GPU a trial"
    params = f"{rows[0]['params']:,}"
    assert any(line.split()[-6:] == [params, "64", "1,234", "12.5", "5,120", "200+"] for line in lines)
    params = f"{rows[-1]['params']:,}"
    assert any(line.split()[-6:] == [params, "64", "-", "12.5", "5,120", "200"] for line in lines)
    assert [line.startswith("does not fit: ") for line in lines[-2:]] == [True, True]


def test_where_nothing_is_measured_in_a_moment_a_line_says_how_far_it_is(
    trials: list[Trial], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    InlineRay(monkeypatch).outcomes.clear()
    now = [0.0]
    monkeypatch.setattr(memory_probe.time, "monotonic", lambda: now[0])

    def measure(task: ProbeTask, *, warm_up: bool) -> dict[str, Any]:
        now[0] += 10
        return {"status": FITS}

    monkeypatch.setattr(memory_probe, "probe", measure)
    memory_probe.probe_trials(trials, Share(1, 0, 1), None)
    assert capsys.readouterr().out.splitlines() == [
        "probed 2 of 5 configurations; 20 s gone", "probed 4 of 5 configurations; 40 s gone",
    ]  # fmt: skip


def test_ray_starts_the_one_worker_that_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[int | None] = []

    def connect(address: str | None, **options: Any) -> None:
        workers.append(options.get("workers"))
        raise InputError("enough")

    monkeypatch.setattr(memory_probe, "connect", connect)
    space = parse_space("small", {
        "question": "Which?", "data": {"name": "digits"}, "network": {"name": "resnet9", "width": 0.125},
        "method": {"name": "bottleneck", "rank_scale": 0.4}, "search": {"sampler": "grid"},
    })  # fmt: skip
    with pytest.raises(InputError, match="enough"):
        memory_probe.probe_space(space, RunOptions(space="small"))
    assert workers == [1]


@pytest.mark.study
def test_the_command_prints_rows_and_records_them(tmp_path: Path) -> None:
    done = studies.run(*studies.TINY[:-4], "--probe-memory", "--json", "--out", str(tmp_path), "--set", "references=[]",
                       "--set", "budget.params={choice: [0.5]}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert {row["status"] for row in rows} == {FITS}
    assert pq.read_table(tmp_path / "fit" / "tt_dims.parquet").num_rows == len(rows)
    assert not (tmp_path / "tt_dims").exists()  # no study was begun
