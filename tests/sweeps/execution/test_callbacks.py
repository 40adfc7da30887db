"""What the driver records of the results that Ray's trials report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.execution import callbacks
from sweeps.execution.callbacks import Recorder
from sweeps.execution.worker_errors import WorkerLostError
from sweeps.records import Status, TrialRecord


class Search:
    """Keeps what would be written into the journal."""

    def __init__(self, trial: TrialRecord) -> None:
        self.record = SimpleNamespace(trials={trial.trial_id: trial})
        self.ends: list[tuple[Any, ...]] = []
        self.requeued: list[str] = []

    def write_initial(self, trial_id: str, initial: dict[str, Any]) -> None:
        self.record.trials[trial_id].initial = initial

    def write_epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        self.record.trials[trial_id].epochs[epoch] = metrics

    def finish(self, trial_id: str, status: Status, *reason: Any) -> None:
        self.record.trials[trial_id].status = status
        self.ends.append((trial_id, status, *reason))

    def write_notice(self, trial_id: str, text: str) -> None:
        self.record.trials[trial_id].notices.append(text)

    def requeue(self, trial_id: str) -> None:
        self.requeued.append(trial_id)


def report(trial: TrialRecord, *results: dict[str, Any]) -> list[tuple[Any, ...]]:
    search = Search(trial)
    config = SimpleNamespace(resources=SimpleNamespace(share="1 CPU", larger=None), on_change=lambda: None)
    recorder = Recorder(search, SimpleNamespace(), config)  # type: ignore[arg-type]
    for result in results:
        recorder.on_trial_result(0, [], None, {"trial": trial.trial_id, **result})  # type: ignore[arg-type]
    return search.ends


END = {"outcome": str(Status.COMPLETED), "reason": "", "wrong_images": "8:x"}


def test_a_trial_that_is_only_evaluated_keeps_its_wrong_images():
    ends = report(TrialRecord("t"), {"initial": {"val_error": 12.5}, "epoch": 0, "val_error": 12.5, **END})
    assert ends == [("t", Status.COMPLETED, "", "8:x")]


@pytest.mark.parametrize(("recorded", "wrong_images"), [(12.5, "8:x"), (25.0, "")])
def test_wrong_images_are_those_of_the_recorded_error(recorded, wrong_images):
    trial = TrialRecord("t", epochs={1: {"val_error": recorded}})
    ends = report(trial, {"epoch": 1, "metrics": {"val_error": 12.5}, "val_error": 12.5, **END})
    assert ends == [("t", Status.COMPLETED, "", wrong_images)]


def test_an_attempt_that_is_repeated_leaves_a_notice_of_why(monkeypatch, tmp_path):
    """To Tune it is a trial that has failed; without the notice nobody could tell what became of it."""
    search = Search(TrialRecord("t"))
    config = SimpleNamespace(study_dir=tmp_path, on_change=lambda: None)
    recorder = Recorder(search, SimpleNamespace(), config)  # type: ignore[arg-type]
    error = WorkerLostError("ray::train()\n  File x\nthe worker held 900 MB of device memory after its trial")
    monkeypatch.setattr(callbacks, "trial_error", lambda trial: error)
    for _ in range(4):
        recorder.on_trial_error(0, [], SimpleNamespace(config={"trial_id": "t"}))  # type: ignore[arg-type]
    reason = "the worker held 900 MB of device memory after its trial"
    assert search.record.trials["t"].notices == [f"an attempt has failed and is repeated: {reason}"] * 3
    assert search.requeued == ["t"] * 3
    assert search.ends == [("t", Status.FAILED, reason, "")]
