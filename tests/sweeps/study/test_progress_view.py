"""How much time is said to be left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.study.progress_view import MIN_SECONDS, ProgressView, describe, progress, summary_line
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
    assert summary_line(shown) == "1/6 trials, 4 running; 1:24 elapsed, about 0:36 left"


def test_work_of_earlier_runs_says_nothing_of_the_pace_of_this_one():
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


class Clock:
    """A monotonic clock that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("sweeps.study.progress_view.time.monotonic", lambda: self.now)


def shown(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_lines_name_each_end_and_each_notice_once_and_none_of_an_earlier_run(monkeypatch):
    clock, console = Clock(monkeypatch), Console(file=io.StringIO(), width=300)
    earlier, running = trial("a", Status.COMPLETED, 100), trial("b", Status.RUNNING, 10)
    earlier.notices = ["of yesterday"]
    study = record(earlier, running)
    with ProgressView(study, lambda: 4, console) as view:
        running.status, running.notices = Status.STOPPED, ["no cache [yet]"]
        study.trials["c"] = trial("c", Status.INFEASIBLE, 0)
        study.trials["d"] = trial("d", Status.COMPLETED, 100)
        study.trials["d"].adopted = {"study": "other"}
        for _ in range(3):
            clock.now += 1
            view.update()
    assert shown(console) == [
        "no cache [yet]",
        "stopped early dense, 1 parameters: 50.00 % validation error [2/4]",
        "adopted       dense, 1 parameters: 50.00 % validation error [3/4]",
    ]


def test_a_line_of_a_failed_trial_names_trial_and_reason(monkeypatch):
    Clock(monkeypatch)
    console = Console(file=io.StringIO(), width=300)
    study = record(trial("b", Status.RUNNING, 1))
    with ProgressView(study, lambda: 3, console):
        for name, status in (("4b05067dffa3", Status.FAILED), ("c", Status.DIVERGED), ("d", Status.OUT_OF_MEMORY)):
            study.trials[name] = trial(name, status, 0)
            study.trials[name].reason = "ValueError: too [wide]"
    assert shown(console) == [
        "failed        dense, 1 parameters [1/3]; trial 4b0506: ValueError: too [wide]",
        "diverged      dense, 1 parameters [2/3]; trial c: ValueError: too [wide]",
        "out of memory dense, 1 parameters [3/3]; trial d: ValueError: too [wide]",
    ]


def test_a_summary_comes_every_fifteen_seconds_where_there_is_no_terminal(monkeypatch):
    clock, console = Clock(monkeypatch), Console(file=io.StringIO(), width=300)
    with ProgressView(record(trial("b", Status.RUNNING, 10)), lambda: 2, console) as view:
        for seconds in (10, 6, 1, 15):
            clock.now += seconds
            view.update()
    assert shown(console) == [
        "0/2 trials, 1 running; 0:16 elapsed, time left unknown",
        "0/2 trials, 1 running; 0:32 elapsed, time left unknown",
    ]


def test_updates_that_follow_each_other_closely_are_left_out_except_the_last(monkeypatch):
    clock, console = Clock(monkeypatch), Console(file=io.StringIO(), width=300)
    running = trial("b", Status.RUNNING, 10)
    with ProgressView(record(running), lambda: 1, console) as view:
        view.update()
        running.notices = ["one"]
        clock.now += MIN_SECONDS / 2
        view.update()
        assert shown(console) == []
    assert shown(console) == ["one"]


def test_a_terminal_shows_the_best_of_each_stratum(monkeypatch):
    Clock(monkeypatch)
    console = Console(file=io.StringIO(), width=200, force_terminal=True, legacy_windows=False)
    ends = [trial(name, Status.COMPLETED, 100) for name in "abcd"]
    for end, stratum, error, params in zip(ends, "ssll", (5.0, 4.0, 3.0, 3.0), (10, 11, 30, 29), strict=True):
        end.stratum, end.counts, end.epochs[100] = stratum, {"params": params}, {"val_error": error}
    ends.append(trial("e", Status.COMPLETED, 100))
    ends[-1].stratum, ends[-1].broken, ends[-1].epochs[100] = "s", "a wrong label", {"val_error": 1.0}
    with ProgressView(record(*ends), lambda: 5, console):
        pass
    text = Text.from_ansi(console.file.getvalue()).plain
    assert "best so far  s:  dense, 11 parameters: 4.00 % validation error" in text
    assert "l:  dense, 29 parameters: 3.00 % validation error" in text
    assert "5/5 trials; 0:00 elapsed" in text


def test_a_trial_is_described_by_its_shape():
    shaped = trial("a", Status.RUNNING, 0)
    shaped.specification = make_specification(method={"name": "tensor_train", "dims": 3, "rank_scale": 0.4})
    assert describe(shaped) == "tensor_train 3 dims rank scale 0.4, 1 parameters"
    shaped.specification = make_specification(method={"name": "tensor_train", "dims": 3, "rank_scale": 0.4}, seed=2)
    assert describe(shaped, with_seed=True) == "tensor_train 3 dims rank scale 0.4, seed 2, 1 parameters"
