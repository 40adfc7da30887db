from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from analysis.stats.front import collect_points, pareto_front
from analysis.stats.hypervolume import ReferencePoint, chance_reference_point, hypervolume, hypervolume_growth
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from tests.support.synthetic_data import study, trial

REFERENCE = ReferencePoint(1000, 50.0)
POINTS = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 60).map(float)), min_size=1, max_size=12)


def area_by_cells(points, reference):
    """The dominated area, summed over the cells of the grid through all points."""
    inside = [(math.log10(p), e) for p, e in points if p < reference.params and e < reference.error]
    xs = sorted({x for x, _ in inside} | {math.log10(reference.params)})
    ys = sorted({y for _, y in inside} | {reference.error})
    return sum(
        (right - x) * (top - y)
        for x, right in pairwise(xs)
        for y, top in pairwise(ys)
        if any(p <= x and e <= y for p, e in inside)
    )


class TestHypervolume:
    @given(POINTS)
    def test_against_a_sum_over_cells(self, points):
        assert hypervolume(points, REFERENCE) == pytest.approx(area_by_cells(points, REFERENCE))

    def test_by_hand(self):
        assert hypervolume([(100, 20), (10, 40), (100, 30)], REFERENCE) == pytest.approx(1 * 30 + 1 * 10)

    def test_points_beyond_the_reference_are_dropped(self):
        assert hypervolume([(1000, 1.0), (10, 50.0), (5000, 0.0)], REFERENCE) == 0

    @pytest.mark.parametrize("point", [(float("nan"), 1.0), (10, float("nan")), (0, 1.0)])
    def test_what_is_no_point(self, point):
        with pytest.raises(ValueError, match="parameters above 0 and a number as error"):
            hypervolume([point], REFERENCE)


@given(POINTS)
def test_the_front_is_the_brute_force_one(points):
    made = study(*(trial(f"t{n}", params, error) for n, (params, error) in enumerate(points)))
    for measure in ("params", "mult_adds"):
        kept = {(p.params, p.error) for p in pareto_front(collect_points(made), measure)}
        beaten = {(p, e) for p, e in points if any(q <= p and f <= e and (q, f) != (p, e) for q, f in points)}
        assert kept == set(points) - beaten


class TestGrowth:
    def study(self):
        first = trial("a", 100, 20.0, epochs=3, seconds=2.0)
        stopped = trial("b", 10, 60.0, epochs=1, seconds=4.0, status=Status.STOPPED)
        last = trial("c", 10, 40.0, epochs=2, seconds=5.0)
        base = trial("r", 900, 1.0, epochs=9, role=Role.REFERENCE)
        for number, each in enumerate((first, stopped, last, base)):
            each.finished_at = 100.0 + number
        return study(base, last, stopped, first)

    def test_in_the_order_of_ends_and_with_what_came_to_nothing(self):
        found = hypervolume_growth(self.study(), REFERENCE)
        assert found.steps == ((6.0, pytest.approx(30.0)), (20.0, pytest.approx(40.0)))
        assert found.cost == 20.0
        assert [found.at(cost) for cost in (5.9, 6, 19, 20)] == [0.0, *(pytest.approx(v) for v in (30, 30, 40))]

    def test_by_epochs(self):
        assert hypervolume_growth(self.study(), REFERENCE, "epochs").steps[-1][0] == 6

    def test_seconds_that_were_not_recorded(self):
        made = self.study()
        del made.trials["a"].epochs[1]["epoch_seconds"]
        with pytest.raises(InputError, match=r"no seconds on record.*--cost epochs"):
            hypervolume_growth(made, REFERENCE)

    def test_the_corner_is_known_before_the_study(self):
        made = study(trial("a"), references={"separable": 700}, data={"classes": 4})
        assert chance_reference_point(made) == ReferencePoint(700, 75.0)
        with pytest.raises(InputError, match="give --reference"):
            chance_reference_point(study(trial("a")))
