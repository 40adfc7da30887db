from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from lowrank.utils.pareto import non_dominated

values = st.one_of(st.integers(0, 4), st.floats(allow_nan=False))  # small integers make ties likely


def brute_force(points):
    """The definition, word for word."""

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [
        index
        for index, point in enumerate(points)
        if not any(dominates(other, point) for other in points) and point not in points[:index]
    ]


@given(st.integers(1, 4).flatmap(lambda size: st.lists(st.tuples(*[values] * size), max_size=30)))
def test_agrees_with_the_definition(points):
    assert non_dominated(points) == brute_force(points)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20), st.randoms())
def test_the_front_does_not_depend_on_the_order(points, random):
    shuffled = list(points)
    random.shuffle(shuffled)
    assert {points[i] for i in non_dominated(points)} == {shuffled[i] for i in non_dominated(shuffled)}


def test_of_equal_points_the_first_stays():
    assert non_dominated([(2.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.5, 3.0)]) == [1, 3]


def test_no_points_no_front():
    assert non_dominated([]) == []


def test_infinity_is_a_number():
    assert non_dominated([(math.inf, 0.0), (1.0, 0.0)]) == [1]


@pytest.mark.parametrize("bad", [math.nan, None])
def test_none_and_nan_are_refused(bad):
    with pytest.raises(ValueError, match=r"every objective must be a number, but point 1 is"):
        non_dominated([(1.0, 2.0), (1.0, bad)])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="points must have 2 objectives each, but point 1 is"):
        non_dominated([(1.0, 2.0), (1.0,)])
