"""The error of students before any training, as `--plan` measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.utils import countdown
from sweeps.space.parse import parse_space
from sweeps.study.initial_errors import InitialErrors
from sweeps.trials.resolver import Resolver

WEIGHTS = Path(__file__).parents[2] / "data" / "digits_resnet9.safetensors"
CONTENT: dict[str, Any] = {
    "question": "Which?", "data": {"name": "digits"},
    "network": {"name": "resnet9", "width": 0.0625, "substitute_all": True}, "train": {"epochs": 1},
    "start": {"how": "in_order", "weights": str(WEIGHTS), "calibration": 64},
    "method": {"name": "spatial_svd", "bias": True},
    "budget": {"params": {"choice": [0.1, 0.9]}, "relative_to": "dense", "allocation": "energy"},
}  # fmt: skip


@pytest.fixture(scope="module")
def started(digits) -> Resolver:
    return Resolver(parse_space("small", CONTENT), digits)


def test_errors_are_measured_once_for_each_size_and_rise_as_it_falls(started):
    lines: list[str] = []
    errors = InitialErrors(started.data, progress=lines.append)
    trials = [started.resolve(point) for point in started.points.grid()]
    for trial in [*trials, *trials]:
        errors.add("spatial_svd", trial)
    assert errors.unmeasured == 0
    assert lines[0] == f"measuring errors before any training: spatial_svd, {trials[0].stratum}"
    trials.sort(key=lambda trial: trial.counts["params"])
    small, large = (errors.measured[trial.stratum]["spatial_svd"] for trial in trials)
    assert large == pytest.approx(2.08, abs=1.0), "the trained network has 2.08 %"
    assert small > large + 1


def test_a_terminal_shows_how_far_a_measurement_is(started, monkeypatch):
    monkeypatch.setattr(countdown.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(countdown, "INTERVAL", 0.0)
    lines: list[str] = []
    InitialErrors(started.data, progress=lines.append).add("spatial_svd", started.resolve({"budget.params": 0.9}))
    parts = [line.split(";")[0] for line in lines]
    assert parts[0].startswith("measuring errors before any training: spatial_svd, ")
    assert parts[1] == "fitting: 1 of 9, stem.0"
    assert parts[9:] == ["fitting: 9 of 9, classifier", "evaluating, batch: 1 of 1"]


def test_what_is_not_measured_for_want_of_time_is_counted(started):
    errors = InitialErrors(started.data, seconds=0)
    for point in started.points.grid():
        errors.add("spatial_svd", started.resolve(point))
    assert (errors.measured, errors.unmeasured) == ({}, 2)


def test_students_that_start_from_scratch_are_passed_over(digits):
    content = {key: value for key, value in CONTENT.items() if key not in ("start", "budget")}
    scratch = Resolver(parse_space("small", {**content, "method": {"name": "separable"}}), digits)
    errors = InitialErrors(scratch.data)
    errors.add("separable", scratch.resolve({}))
    assert (errors.measured, errors.unmeasured) == ({}, 0)
