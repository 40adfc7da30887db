"""Clocks that jump: recorded times still go forward evenly."""

from __future__ import annotations

from sweeps.execution.callbacks import TimeLimit
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.utils.clock import Clock, monotonic_time
from tests.support.journals import read_events


class Jumping:
    """A system's clock and the seconds since the machine started, both set by the test."""

    def __init__(self, wall: float) -> None:
        self.wall, self.uptime = wall, 50.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.uptime)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


def test_a_jump_of_the_system_clock_does_not_change_recorded_times():
    system = Jumping(1000.0)
    clock = system.clock()
    system.passes(2)
    assert clock.now() == 1002.0
    system.wall += 3600
    assert clock.now() == 1002.0
    system.wall -= 2 * 3600
    system.passes(1)
    assert clock.now() == 1003.0


def test_the_journal_continues_from_its_last_time_after_the_clock_was_set_back(tmp_path):
    system, path = Jumping(1000.0), tmp_path / "journal.jsonl"
    for wall in (1000.0, 400.0, 5000.0):  # a resume with the clock ten minutes back, then one with it right
        system.wall = wall
        journal = Journal(path, system.clock())
        for _ in range(2):
            system.passes(1)
            journal.append(Event.CLOSED, reason="")
        journal.close()
    assert [event["time"] for event in read_events(path)] == [1001, 1002, 1003, 1004, 5001, 5002]


def test_a_jump_of_the_system_clock_does_not_use_up_a_time_limit(monkeypatch):
    started = monotonic_time()
    limit = TimeLimit(60)
    monkeypatch.setattr("time.time", lambda: 1e12)
    assert not limit.stop_all()
    monkeypatch.setattr("sweeps.execution.callbacks.monotonic_time", lambda: started + 61)
    assert limit.stop_all()
