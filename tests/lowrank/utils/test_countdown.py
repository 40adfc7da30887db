"""Lines that say how far a piece of work has come."""

from __future__ import annotations

import pytest

from lowrank.utils import countdown
from lowrank.utils.countdown import Countdown


def test_the_time_left_follows_from_the_parts_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 4.0, 6.0))
    monkeypatch.setattr(countdown.time, "perf_counter", lambda: next(clock))
    lines: list[str] = []
    count = Countdown(lines.append, "fitting", 3)
    for name in ("a", "b", ""):
        count.step(name)
    assert lines == ["fitting: 1 of 3, a", "fitting: 2 of 3, b; about 8 s left", "fitting: 3 of 3; about 3 s left"]
