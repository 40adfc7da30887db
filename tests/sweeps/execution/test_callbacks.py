"""What the driver records of the results that Ray's trials report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.execution.callbacks import Recorder
from sweeps.records import Status, TrialRecord


class Search:
    """Keeps what would be written into the journal."""

    def __init__(self, trial: TrialRecord) -> None:
        self.record = SimpleNamespace(trials={trial.trial_id: trial})
        self.ends: list[tuple[Any, ...]] = []

    def write_initial(self, trial_id: str, initial: dict[str, Any]) -> None:
        self.record.trials[trial_id].initial = initial

    def write_epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        self.record.trials[trial_id].epochs[epoch] = metrics

    def finish(self, *end: Any) -> None:
        self.ends.append(end)


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
