"""A device that fails or is full costs one trial at most, and is recorded once."""

from __future__ import annotations

import pytest

from sweeps.records import Status
from tests.support import studies
from tests.support.broken import MARK

ONE_AT_A_TIME = ("--set", "resources.max_concurrent=1", "--set", "search.stop=none", "--set", "train.epochs=3")


def study(tmp_path, monkeypatch, network):
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", str(studies.ROOT))
    done = studies.run(
        *studies.TINY, *ONE_AT_A_TIME, "--set", f"network.name=tests.support.broken:{network}", "--trials", "2",
        "--out", str(tmp_path), "--name", "hit",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mark").exists()
    assert "Traceback" not in done.stdout + done.stderr
    return list(studies.record(tmp_path / "hit").trials.values())


@pytest.mark.slow
def test_a_device_error_ends_the_process_and_the_trial_goes_on_in_another(tmp_path, monkeypatch):
    trials = study(tmp_path, monkeypatch, "device_error")
    assert {trial.status for trial in trials} == {Status.COMPLETED}
    first, *others = trials
    assert len(first.attempts) == 2
    before, after = (attempt["pid"] for attempt in first.attempts)
    assert before != after
    assert {attempt["pid"] for trial in others for attempt in trial.attempts} == {after}
    assert list(first.epochs) == [1, 2, 3]


@pytest.mark.slow
def test_memory_that_runs_out_is_recorded_and_the_worker_stays(tmp_path, monkeypatch):
    first, *others = study(tmp_path, monkeypatch, "out_of_memory")
    assert first.status is Status.OUT_OF_MEMORY
    assert first.reason == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert len(first.attempts) == 1
    assert {trial.status for trial in others} == {Status.COMPLETED}
    assert {attempt["pid"] for trial in others for attempt in trial.attempts} == {first.attempts[0]["pid"]}
