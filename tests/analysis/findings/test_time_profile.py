"""Where the time of a study went: taken from made records to the second, and adding up to slots times wall-clock."""

from __future__ import annotations

import math

import pytest

from analysis.findings.time_profile import (
    CLOSING,
    COMPILE,
    DRIVER,
    IDLE,
    INPUT,
    PARTS,
    REPORTS,
    SET_UP,
    STEP,
    VALIDATION,
    WORKERS,
    profile_lines,
    profile_study,
)
from sweeps.records.events import Event, Role
from sweeps.records.model import StudyRecord, apply_event
from sweeps.records.tables import read_tables, write_tables

EPOCH = {"epoch_seconds": 5.0, "input_seconds": 1.0, "eval_seconds": 0.5, "report_seconds": 0.25}


class Made:
    """A study that is told event by event, times in seconds from its first command."""

    def __init__(self) -> None:
        self.record = StudyRecord()

    def tell(self, event: Event, at: float, **fields) -> None:
        apply_event(self.record, {"event": str(event), "time": at, **fields})

    def run(self, began: float, ready: float, slots: int = 2) -> None:
        self.tell(Event.STUDY, began + 1, name="made")
        self.tell(Event.RESOURCES, ready, slots=slots, since=ready - began, cpus=1.0, gpus=0.0, sharing="processes")

    def trial(self, name: str, pid: int, begin: float, epochs: int = 2, first: int = 1, **metrics: float) -> float:
        """An attempt of so many epochs whose set-up takes 2 s; returns when it was over."""
        known = {"role": Role.SEARCH, "stratum": "", "parameters": {}, "specification": {}, "counts": {}}
        self.tell(Event.PROPOSED, begin, trial=name, proposal={}, **known)
        now = begin + 2.0
        for epoch in range(first, first + epochs):
            values = {**EPOCH, **(metrics if epoch == first else {})}
            now += values["epoch_seconds"] + values["report_seconds"]
            if epoch == first:
                self.tell(Event.ATTEMPT, now, trial=name, host="h", pid=pid, start_seconds=2.0, from_epoch=first - 1)
            self.tell(Event.EPOCH, now, trial=name, epoch=epoch, metrics={**values, "val_error": 5.0})
        return now


def test_the_parts_of_a_run_add_up_to_its_slots_times_wall_clock():
    made = Made()
    made.run(began=0.0, ready=10.0)
    ends = [made.trial("a", 1, begin=13.0, epoch_seconds=11.0, compile_seconds=4.0, eval_compile_seconds=2.0)]
    ends.append(made.trial("b", 2, begin=14.0))
    ends.append(made.trial("c", 2, begin=ends[1] + 0.5))
    made.tell(Event.CLOSED, max(ends) + 3.0, reason="finished")
    found = profile_study(made.record)
    assert found is not None
    wall = max(ends) + 3.0
    assert found.slot_seconds == pytest.approx(2 * wall)
    assert found.seconds == {
        DRIVER: 20.0, WORKERS: 3.0 + 4.0, SET_UP: 6.0, COMPILE: 6.0, INPUT: 6.0,
        STEP: pytest.approx(5 * 5.0 + 11.0 - 6.0 - 6.0 - 3.0), VALIDATION: 3.0, REPORTS: 1.5, CLOSING: 6.0,
        IDLE: pytest.approx((max(ends) - ends[0]) + 0.5),
    }  # fmt: skip
    assert math.fsum(found.seconds.values()) == pytest.approx(found.slot_seconds)
    # Of b, which compiles nothing: 14 s, 2 s of set-up and a report of 0.25 s
    starts = "from the command to the first step 16.2 s; from the last epoch to the end 3.0 s"
    assert profile_lines(found)[-1] == starts


def test_runs_add_up_and_a_killed_driver_ended_with_its_last_epoch():
    made = Made()
    made.run(began=0.0, ready=10.0, slots=1)
    killed = made.trial("a", 1, begin=12.0)
    made.run(began=100.0, ready=105.0, slots=2)
    end = made.trial("a", 7, begin=106.0, first=3)
    made.tell(Event.CLOSED, end, reason="time")
    found = profile_study(made.record)
    assert found is not None
    assert [run.slots for run in found.runs] == [1, 2]
    assert found.wall_seconds == pytest.approx(killed + end - 100.0)
    assert found.slot_seconds == pytest.approx(killed + 2 * (end - 100.0))
    assert (found.seconds[DRIVER], found.seconds[WORKERS], found.seconds[SET_UP]) == (20.0, 2.0 + 1.0, 4.0)
    assert found.seconds[CLOSING] == 0.0
    assert math.fsum(found.seconds.values()) == pytest.approx(found.slot_seconds)


def test_trials_that_ran_before_fewer_slots_were_decided_are_no_idle_time():
    made = Made()
    made.run(began=0.0, ready=10.0, slots=8)
    ends = [made.trial(name, pid, begin=10.0) for name, pid in (("a", 1), ("b", 2))]
    made.tell(Event.PACKING, 15.0, per_card=1, tried=[], why="", gpus=1.0, slots=1)
    made.tell(Event.CLOSED, ends[1], reason="finished")
    found = profile_study(made.record)
    assert found is not None
    assert ends[0] == ends[1]
    assert [(run.slots, run.beyond) for run in found.runs] == [(1, ends[0] - 10.0)]
    assert found.seconds[IDLE] == pytest.approx(0.0)
    assert math.fsum(found.seconds.values()) == pytest.approx(found.slot_seconds)


def test_a_study_of_an_older_version_has_no_profile():
    made = Made()
    made.tell(Event.STUDY, 0.0, name="made")
    made.trial("a", 1, begin=1.0)
    assert profile_study(made.record) is None
    assert profile_lines(None) == [
        "where the time went is not on record: an older version wrote this study, or nothing has been trained"
    ]


def test_a_run_without_a_trial_has_only_starts_and_ends():
    made = Made()
    made.run(began=0.0, ready=4.0, slots=3)
    made.tell(Event.CLOSED, 6.0, reason="interrupted")
    found = profile_study(made.record)
    assert found is not None
    assert {part: seconds for part, seconds in found.seconds.items() if seconds} == {DRIVER: 12.0, CLOSING: 6.0}
    lines = profile_lines(found)
    assert lines[0] == "where the time went: 18 s of slots (3 slots, 6 s of wall-clock in 1 run)"
    assert [line.split("  ")[1].strip() for line in lines[1:-1]] == list(PARTS)
    assert lines[-1] == "from the command to the first step - s; from the last epoch to the end 2.0 s"
    assert lines[1].endswith("12.0 s  66.7 %")


def test_the_tables_keep_it(tmp_path):
    made = Made()
    made.run(began=0.0, ready=10.0)
    made.tell(Event.CLOSED, made.trial("a", 1, begin=13.0, compile_seconds=1.0), reason="finished")
    write_tables(made.record, tmp_path)
    assert profile_study(read_tables(tmp_path)) == profile_study(made.record)


def test_an_event_that_is_folded_twice_counts_once():
    made = Made()
    made.run(began=0.0, ready=10.0)
    made.tell(Event.CLOSED, 12.0, reason="time")
    made.run(began=0.0, ready=10.0)
    assert len(made.record.runs) == 1
