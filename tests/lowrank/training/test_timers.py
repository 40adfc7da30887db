"""What an epoch's time is spent on is timed by clocks that are told apart; all of it is within the epoch."""

from __future__ import annotations

import torch

from lowrank.training import timers as phases
from lowrank.training.timers import COMPILE, INPUT, PhaseTimers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def batches(self, count: int):
        for number in range(count):
            self.now += 2.0
            yield number


def test_waiting_for_batches_is_input_and_what_is_done_with_them_is_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    mine = PhaseTimers(torch.device("cpu"))
    mine.begin()
    found = []
    for batch in mine.input(clock.batches(3)):
        found.append(batch)
        clock.now += 5.0
        if batch == 0:
            with mine.timed(COMPILE):
                clock.now += 11.0
    assert found == [0, 1, 2]
    assert mine.read() == {INPUT: 6.0, COMPILE: 11.0}
    mine.begin()
    assert mine.read() == {INPUT: 0.0}


def test_a_block_that_fails_is_no_phase(monkeypatch):
    mine = PhaseTimers(torch.device("cpu"))
    mine.begin()
    try:
        with mine.timed(COMPILE):
            raise ValueError
    except ValueError:
        pass
    assert mine.read() == {INPUT: 0.0}
