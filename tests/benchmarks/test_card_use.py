"""Idle time of cards is read from the records of a study."""

from __future__ import annotations

import pytest

from benchmarks.gpu.card_use import card_rows, covered
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


def test_a_card_is_idle_while_no_trial_trains_on_it():
    trials = [
        trial("a", ["0"], 0, [5, 11]), trial("b", ["0"], 4, [8]), trial("c", ["1"], 0, [6]),
        trial("d", ["0", "1"], 10, [21]), TrialRecord("waits"),
    ]  # fmt: skip
    first, second, unused = card_rows(StudyRecord(trials={each.trial_id: each for each in trials}), 3)
    assert (first["card"], second["card"], unused["card"]) == ("h 0", "h 1", "unused 0")
    assert (first["epochs"], second["epochs"]) == (4, 2)
    assert first["idle %"] == pytest.approx(100 / 21)  # the first second
    assert second["idle %"] == pytest.approx(100 * 6 / 21)  # the first one, and from 6 to 11
    assert second["idle while others waited %"] == pytest.approx(50)  # of the ten seconds until d began
    assert unused["idle %"] == 100


def test_an_attempt_has_its_own_epochs_alone():
    again = trial("a", ["0"], 0, [3, 6])
    again.attempts.append({"host": "h", "cards": ["1"], "time": 6.0, "start_seconds": 0.5})
    first, second = card_rows(StudyRecord(trials={"a": again}), 2)
    assert (first["epochs"], second["epochs"]) == (1, 1)


def test_a_study_that_has_trained_nothing_has_no_table():
    assert card_rows(StudyRecord(), 2) == []
