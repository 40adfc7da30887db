"""A device that fails or is full costs one trial at most, and is recorded once."""

from __future__ import annotations

import pytest

from sweeps.records.events import Status
from tests.support import studies
from tests.support.broken_network import MARK
from tests.support.environment import python_path

pytestmark = [pytest.mark.faults, pytest.mark.study]

ONE_AT_A_TIME = ("--set", "resources.max_concurrent=1", "--set", "search.stop=none", "--set", "train.epochs=3")


def study(tmp_path, monkeypatch, network):
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", python_path())
    done = studies.run(
        *studies.TINY, *ONE_AT_A_TIME, "--allow-code", "--cpus-per-trial", "0.5", "--trials", "2",
        "--set", f"network.name=tests.support.broken_network:{network}", "--out", str(tmp_path), "--name", "hit",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mark").exists()
    assert "Traceback" not in done.stdout + done.stderr
    assert "did not complete" not in done.stdout + done.stderr
    return list(studies.record(tmp_path / "hit").trials.values())


@pytest.mark.slow
def test_a_device_error_ends_the_process_and_the_trial_goes_on_in_another(tmp_path, monkeypatch):
    trials = study(tmp_path, monkeypatch, "device_error")
    assert {trial.status for trial in trials} == {Status.COMPLETED}
    first, *others = trials
    assert len(first.attempts) == 2
    before, after = (attempt["pid"] for attempt in first.attempts)
    assert before != after
    (notice,) = first.notices
    assert notice.startswith("an attempt has failed and is repeated: ")
    assert {attempt["pid"] for trial in others for attempt in trial.attempts} == {after}
    assert list(first.epochs) == [1, 2, 3]


@pytest.mark.slow
def test_what_runs_out_of_memory_is_tried_once_more_on_a_larger_share_when_the_rest_is_done(tmp_path, monkeypatch):
    first, *others = study(tmp_path, monkeypatch, "out_of_memory")
    assert {trial.status for trial in (first, *others)} == {Status.COMPLETED}
    assert first.postponed == "on 0.5 CPU and 0 GPU: CUDA out of memory. Tried to allocate 20.00 GiB."
    small, large = first.attempts
    assert large["time"] > max(trial.finished_at for trial in others)
    assert {attempt["pid"] for trial in others for attempt in trial.attempts} == {small["pid"]}  # the worker stays
    assert list(first.epochs) == [1, 2, 3]
    (said,) = first.notices
    assert "when the others are done it is tried once more on 1 CPU and 0 GPU" in said


@pytest.mark.slow
def test_what_fits_on_no_share_is_recorded_once_and_says_what_was_tried(tmp_path, monkeypatch):
    first, *others = study(tmp_path, monkeypatch, "too_large")
    assert first.status is Status.OUT_OF_MEMORY
    why = "CUDA out of memory. Tried to allocate 30.00 GiB."
    assert first.reason == f"on 0.5 CPU and 0 GPU: {why.rstrip('.')}; once more on 1 CPU and 0 GPU: {why}"
    assert len(first.attempts) == 2
    assert {trial.status for trial in others} == {Status.COMPLETED}
