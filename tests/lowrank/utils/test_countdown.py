"""Lines that say how far a piece of work has come."""

from __future__ import annotations

import pytest

from lowrank.utils import countdown
from lowrank.utils.countdown import Countdown, print_progress


def test_the_time_left_follows_from_the_parts_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 1.0, 8.0, 9.0))
    monkeypatch.setattr(countdown.time, "perf_counter", lambda: next(clock))
    lines: list[str] = []
    count = Countdown(lines.append, "fitting", 4)
    for name in ("a", "b", "c", ""):
        count.step(name)
    assert lines == ["fitting: 1 of 4, a", "fitting: 3 of 4, c; about 8 s left"], "at most one line in two seconds"


@pytest.mark.parametrize(("terminal", "lines"), [(True, ["calibrating: 3 of 4, c; about 8 s left"]), (False, [])])
def test_work_that_is_announced_prints_lines_later_and_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, lines: list[str]
) -> None:
    clock = iter((0.0, 0.0, 1.0, 8.0, 9.0))
    monkeypatch.setattr(countdown.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(countdown.sys.stderr, "isatty", lambda: terminal)
    printed: list[str] = []
    count = Countdown(printed.append, "calibrating", 4, announced=True)
    for name in ("a", "b", "c", ""):
        count.step(name)
    assert printed == lines


def test_progress_leaves_standard_output_to_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    print_progress("fitting: 1 of 4")
    assert capsys.readouterr() == ("", "fitting: 1 of 4\n")
