"""The benchmark of faults counts the attempts that train, not those that are lost before their first epoch."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.group_faults import NAME, Faults, begun_attempts
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER, Status, StudyRecord, TrialRecord

TRAINS, LOST = {"pid": 1, "start_seconds": 2.0}, {"device": "cuda", "reason": "the trial lost process 1 of 2"}


@pytest.mark.parametrize(
    ("attempts", "begun", "is_hit"),
    [([], 0, False), ([TRAINS], 1, True), ([TRAINS, LOST], 1, False), ([LOST, TRAINS], 1, True)],
)
def test_a_trial_whose_last_attempt_was_lost_is_not_hit_before_it_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: list[dict[str, Any]], begun: int, is_hit: bool
) -> None:
    trial = TrialRecord("a", status=Status.RUNNING, attempts=attempts)
    (tmp_path / NAME / TRIALS_FOLDER / "a").mkdir(parents=True)
    (tmp_path / NAME / TRIALS_FOLDER / "a" / CHECKPOINT_FILE).touch()
    faults = Faults(Namespace(out=tmp_path, seconds=1.0), None)  # type: ignore[arg-type]
    monkeypatch.setattr(faults, "record", lambda: StudyRecord(trials={"a": trial}))
    assert len(begun_attempts(trial)) == begun
    assert (faults._running(set()) is trial) == is_hit
