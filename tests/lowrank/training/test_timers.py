"""Seconds of an epoch by phase."""

from __future__ import annotations

import torch

from lowrank.training import timers
from lowrank.training.timers import COMPILE, EVALUATION, EVALUATION_SET_UP, INPUT, PhaseTimers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def batches(self, count: int):
        for number in range(count):
            self.now += 2.0
            yield number


def test_only_waiting_for_batches_counts_as_input(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timers, "time", clock)
    clocks = PhaseTimers(torch.device("cpu"))
    clocks.begin()
    received = []
    for batch in clocks.input(clock.batches(3)):
        received.append(batch)
        clock.now += 5.0
        if batch == 0:
            with clocks.timed(COMPILE):
                clock.now += 11.0
    assert received == [0, 1, 2]
    assert clocks.read() == {INPUT: 6.0, COMPILE: 11.0}
    clocks.begin()
    assert clocks.read() == {INPUT: 0.0}


def test_a_failed_block_is_not_counted(monkeypatch):
    clocks = PhaseTimers(torch.device("cpu"))
    clocks.begin()
    try:
        with clocks.timed(COMPILE):
            raise ValueError
    except ValueError:
        pass
    assert clocks.read() == {INPUT: 0.0}


def test_a_phase_inside_another_is_counted_once(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timers, "time", clock)
    clocks = PhaseTimers(torch.device("cpu"))
    clocks.begin()
    for _ in range(2):
        with clocks.timed(EVALUATION):
            clock.now += 1.0
            with clocks.timed(EVALUATION_SET_UP):
                clock.now += 10.0
                with clocks.timed(COMPILE):
                    clock.now += 100.0
            clock.now += 2.0
    assert clocks.read() == {INPUT: 0.0, EVALUATION: 6.0, EVALUATION_SET_UP: 20.0, COMPILE: 200.0}
