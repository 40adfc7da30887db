"""How much time is said to be left."""

from __future__ import annotations

import pytest

from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.study.progress_view import progress, summary_line
from tests.support.specifications import make_specification


def trial(name: str, status: Status, epochs: int) -> TrialRecord:
    specification = make_specification(train={"epochs": 100})
    made = TrialRecord(trial_id=name, status=status, specification=specification, counts={"params": 1})
    made.epochs = {epoch: {"val_error": 50.0} for epoch in range(1, epochs + 1)}
    return made


def record(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(trials={each.trial_id: each for each in trials})


def test_trials_under_way_count_by_their_epochs():
    found = record(trial("a", Status.COMPLETED, 100), *(trial(name, Status.RUNNING, 80) for name in "bcde"))
    shown = progress(found, 6, 0.0, 0.0, 84.0)  # 4.2 trials' work in 84 s; 4 fifths and one more are to come
    assert shown.remaining == pytest.approx(84 / 4.2 * 1.8)
    assert summary_line(shown) == "1/6 trials, 4 running; 1:24 gone, about 0:36 left"


def test_work_of_earlier_sittings_says_nothing_of_this_ones_pace():
    before = record(trial("a", Status.COMPLETED, 100), trial("b", Status.RUNNING, 50))
    work = progress(before, 4, 0.0, 0.0, 0.0).work
    assert work == pytest.approx(1.5)
    first = record(trial("a", Status.COMPLETED, 100), trial("b", Status.RUNNING, 51))
    assert progress(first, 4, 0.0, work, 60.0).remaining is None  # most of that minute was the start
    later = record(trial("a", Status.COMPLETED, 100), trial("b", Status.COMPLETED, 100), trial("c", Status.RUNNING, 50))
    assert progress(later, 4, 0.0, work, 10.0).remaining == pytest.approx(15.0)


@pytest.mark.parametrize(("epochs", "left"), [(90, None), (50, 10.0)])
def test_nothing_is_said_before_the_work_of_a_whole_trial(epochs, left):
    running = [trial(name, Status.RUNNING, epochs) for name in ("a" if left is None else "ab")]
    assert progress(record(*running), 2, 0.0, 0.0, 10.0).remaining == left
