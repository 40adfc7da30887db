"""The expected best of n settings, against the mean over all choices of n."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import pytest

from analysis.stats.expected_best import expected_best, expected_bests
from analysis.stats.front import collect_points
from sweeps.records.events import Role
from tests.support.synthetic_data import study, trial

ERRORS = [5.0, 3.0, 3.0, 9.5, 4.25]


@pytest.mark.parametrize("n", range(1, 6))
def test_it_is_the_mean_of_the_lowest_over_all_choices(n):
    assert expected_best(ERRORS, n) == pytest.approx(fmean(min(choice) for choice in combinations(ERRORS, n)))


@pytest.mark.parametrize("n", [0, 6])
def test_more_than_there_are_cannot_be_drawn(n):
    with pytest.raises(ValueError, match=f"between 1 and the 5 errors, but got {n}"):
        expected_best(ERRORS, n)


def test_further_seeds_are_no_further_settings_and_do_not_move_the_first():
    record = study(trial("a", error=4.0), trial("a1", error=8.0, seed=1, role=Role.REPEAT), trial("b", 50, 6.0))
    (cp,) = expected_bests(collect_points(record), ["cp", "tt"]).values()
    assert (cp.error, cp.n, cp.settings) == (4.0, 2, 2)
