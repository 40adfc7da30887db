"""The short form of `python -m benchmarks.calibration`: fixed seeds, a few hundred studies of each kind."""

import pytest

from benchmarks.calibration import KINDS, Row, measure

# 3 standard deviations of so few studies below the goals
STUDIES, LEAST_COVERAGE, MOST_ALARMS, MOST_BIAS = 150, 89.0, 11.0, 0.85
CHECKED = [kind for kind in KINDS if kind.has_goal and "2,000 images" not in kind.name]


@pytest.mark.parametrize("kind", CHECKED, ids=lambda kind: kind.name)
def test_what_an_answer_says_holds_as_often_as_it_says(kind):
    row = measure(kind, STUDIES if kind.share == 1 else STUDIES // 2, seed=7)
    assert row.coverage is None or row.coverage >= LEAST_COVERAGE
    assert row.alarms is None or row.alarms <= MOST_ALARMS
    assert row.bias is None or abs(row.bias) <= MOST_BIAS
    if row.naive_bias is not None:
        assert abs(row.bias or 0.0) < abs(row.naive_bias)


@pytest.mark.parametrize("name", ["  the same: its own Wilson interval (not used)"])
def test_the_simulation_shows_what_is_wrong_without_a_correction(name):
    (kind,) = [kind for kind in KINDS if kind.name == name]
    row = measure(kind, STUDIES, seed=7)
    assert row.coverage is not None
    assert row.coverage < 87
    assert row.naive_bias is not None
    assert row.naive_bias < -3


def test_a_missed_goal_is_said():
    row = Row(name="x", studies=1, coverage=90.0, alarms=7.0, bias=-0.2)
    assert row.missed == [
        "coverage 90.0 % is below 94.3 %", "false alarms 7.0 % are above 5.6 %",
        "reported minus true is -0.20 deviations, above 0.1",
    ]  # fmt: skip
    assert Row(name="x", studies=1, coverage=90.0, has_goal=False).missed == []
