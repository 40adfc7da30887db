"""A study that was resumed is cut into the runs of its driver; each shows what was known when it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.research_log.study_runs import study_runs
from sweeps.records import JOURNAL_FILE, Event, Journal, Status, load_history
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import START, Plan, header, metrics, trial_id, write_study

FIRST, SECOND = START, START + 500
PLAN = Plan(name="resumed", epochs=2)


def propose(journal: Journal, name: str, at: float) -> str:
    identity = trial_id(name)
    journal.append(
        Event.PROPOSED, time=at, trial=identity, role="search", stratum="", parameters={}, counts={"params": 10},
        specification=plain_specification(method={"name": "tucker"}, train={"epochs": 2}), proposal={},
        point_id=identity,
    )  # fmt: skip
    journal.append(Event.ATTEMPT, time=at + 1, trial=identity, attempt=1, start_seconds=0.5)
    return identity


@pytest.fixture
def resumed(tmp_path) -> Path:
    """A study of two runs: one trial ended in the first, one was interrupted, both were tested in the second."""
    journal = Journal(tmp_path / JOURNAL_FILE)
    journal.append(Event.STUDY, time=FIRST, **header(PLAN))
    journal.append(Event.ANNOTATED, time=FIRST + 1, note="begun", tags={})
    for name in ("ended", "cut"):
        identity = propose(journal, name, FIRST + 10)
        journal.append(Event.EPOCH, time=FIRST + 20, trial=identity, epoch=1, metrics=metrics(20.0, 1))
    journal.append(Event.EPOCH, time=FIRST + 30, trial=trial_id("ended"), epoch=2, metrics=metrics(10.0, 2))
    journal.append(Event.FINISHED, time=FIRST + 31, trial=trial_id("ended"), status="completed")
    journal.append(Event.CLOSED, time=FIRST + 40, reason="interrupted")
    journal.append(Event.EXCLUDED, time=FIRST + 50, trial=trial_id("ended"), broken="wrong labels")
    journal.append(Event.STUDY, time=SECOND, **{**header(PLAN), "commit": "later"})
    journal.append(Event.RESOURCES, time=SECOND + 1, since=1.0, slots=3, cpus=1.0, gpus=0, sharing="processes")
    journal.append(Event.ATTEMPT, time=SECOND + 2, trial=trial_id("cut"), attempt=2, start_seconds=0.25)
    journal.append(Event.EPOCH, time=SECOND + 3, trial=trial_id("cut"), epoch=2, metrics=metrics(5.0, 2))
    journal.append(Event.FINISHED, time=SECOND + 4, trial=trial_id("cut"), status="completed")
    for name in ("ended", "cut"):
        journal.append(Event.TESTED, time=SECOND + 5, trial=trial_id(name), test_error=6.0)
    journal.close()
    return tmp_path


def test_each_run_has_its_times_its_end_and_what_people_did_then(resumed):
    first, second = study_runs(load_history(resumed))
    assert (first.number, first.began, first.ended, first.reason) == (1, FIRST, FIRST + 40, "interrupted")
    assert (second.number, second.began, second.ended, second.reason) == (2, SECOND, None, "")
    assert [event["event"] for event in first.annotations] == [Event.ANNOTATED, Event.EXCLUDED]
    assert not second.annotations
    assert (first.header.commit, second.header.commit) == ("0123456789abcdef", "later")
    assert not first.resources
    assert second.resources["slots"] == 3
    assert [first.is_last, second.is_last] == [False, True]


def test_a_snapshot_has_nothing_that_came_later_but_marks(resumed):
    history = load_history(resumed)
    first, second = study_runs(history)
    ended, cut = (first.snapshot.trials[trial_id(name)] for name in ("ended", "cut"))
    assert (ended.status, ended.val_error, ended.test_error, ended.broken) == (
        Status.COMPLETED, 10.0, None, "wrong labels",
    )  # fmt: skip
    assert (cut.status, list(cut.epochs), len(cut.attempts)) == (Status.RUNNING, [1], 1)
    assert (cut.finished_at, cut.test_error) == (None, None)
    assert first.snapshot.closed is not None
    assert second.snapshot is history.study


def test_the_work_of_a_run_is_its_own_epochs_and_attempts(resumed):
    first, second = study_runs(load_history(resumed))
    assert {t.trial_id: list(t.epochs) for t in first.work.trials.values()} == {
        trial_id("ended"): [1, 2], trial_id("cut"): [1],
    }  # fmt: skip
    assert {t.trial_id: (list(t.epochs), len(t.attempts)) for t in second.work.trials.values()} == {
        trial_id("cut"): ([2], 1)
    }
    assert first.work.trials[trial_id("cut")].status is Status.RUNNING


def test_a_study_of_one_run_is_not_cut(tmp_path):
    history = load_history(write_study(tmp_path, Plan(trials=6)))
    (run,) = study_runs(history)
    assert run.work is run.snapshot is history.study
