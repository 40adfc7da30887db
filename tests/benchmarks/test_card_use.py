"""Idle time of cards is read from the records of a study."""

from __future__ import annotations

import pytest

from benchmarks.gpu.card_use import card_rows, covered, phases
from sweeps.records import StudyRecord, TrialRecord


def trial(name: str, cards: list[str], begin: float, ends: list[float]) -> TrialRecord:
    """A trial whose start takes a second, and whose epochs end at these times, each as soon as the next begins."""
    starts = [begin + 1, *ends[:-1]]
    epochs = {
        number: {"time": end, "epoch_seconds": end - start}
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1)
    }
    attempt = {"host": "h", "cards": cards, "time": ends[0], "start_seconds": 1.0}
    return TrialRecord(name, attempts=[attempt], epochs=epochs)


def test_the_union_of_intervals_is_cut_at_both_ends():
    assert covered([(0, 2), (1, 3), (5, 9)], 0.5, 6) == pytest.approx(3.5)


def study(*trials: TrialRecord, finished: bool = True) -> StudyRecord:
    runs = [{"time": 10.0, "since": 12.0}]
    return StudyRecord(
        trials={each.trial_id: each for each in trials}, runs=runs, finished_ends=[99.0] if finished else []
    )  # fmt: skip


TRIALS = (
    trial("a", ["0"], 0, [5, 11]), trial("b", ["0"], 4, [8]), trial("c", ["1"], 0, [6]),
    trial("d", ["0", "1"], 10, [21]), TrialRecord("waits"),
)  # fmt: skip


def test_a_card_is_idle_while_no_trial_trains_on_it_though_one_waits():
    """The first step comes after a second, the last trial starts after ten."""
    first, second, unused = card_rows(study(*TRIALS), 3)
    assert (first["card"], second["card"], unused["card"]) == ("h 0", "h 1", "unused 0")
    assert (first["epochs"], second["epochs"]) == (4, 2)
    assert first["idle %"] == 0
    assert first["at once"] == pytest.approx((9 + 3) / 9)
    assert second["idle %"] == pytest.approx(100 * 4 / 9)  # from 6 to 10
    assert (first["idle at end %"], second["idle at end %"]) == pytest.approx((0, 100 / 11))
    assert unused["idle %"] == 100
    assert phases(study(*TRIALS)) == (
        "3 s from the command to the first step, 9 s until its last trial started (counted), 11 s until the last epoch"
    )


def test_a_study_that_was_cut_short_had_trials_that_waited_to_its_last_epoch():
    _, second = card_rows(study(*TRIALS, finished=False), 2)
    assert second["idle %"] == pytest.approx(100 * 5 / 20)  # from 6 to 11, of which the last second is a start
    assert second["starting %"] == pytest.approx(100 / 20)
    assert second["idle at end %"] == 0
    assert "until its last epoch: it was cut short" in phases(study(*TRIALS, finished=False))


def test_the_time_in_which_a_step_is_compiled_is_part_of_the_start():
    compiled = trial("b", ["0"], 10, [15])
    compiled.epochs[1]["compile_seconds"] = 2.0
    (row,) = card_rows(study(trial("a", ["0"], 0, [10]), compiled, trial("c", ["0"], 16, [20])), 1)
    assert row["idle %"] == pytest.approx(100 * (3 + 1) / 15)  # from 10 to 13, and from 15 to 16
    assert row["starting %"] == pytest.approx(100 * 3 / 15)


def test_an_attempt_has_its_own_epochs_alone():
    again = trial("a", ["0"], 0, [3, 6])
    again.attempts.append({"host": "h", "cards": ["1"], "time": 6.0, "start_seconds": 0.5})
    first, second = card_rows(study(again), 2)
    assert (first["epochs"], second["epochs"]) == (1, 1)


def test_a_study_that_has_trained_nothing_has_no_table():
    assert card_rows(StudyRecord(), 2) == []
