from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats.noise import difference, wilson, within_noise

errors, images = st.floats(0, 100), st.integers(1, 100_000)


@pytest.mark.parametrize(
    ("wrong", "of", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_agrees_with_newcombes_table(wrong, of, low, high):
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    assert wilson(100 * wrong / of, of) == pytest.approx((low, high), abs=0.006)


def test_the_difference_agrees_with_newcombes_table():
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10."""
    low, high = difference(100.0, 0.0, 10)
    assert (low, high) == pytest.approx((60.75, 100.0), abs=0.01)


@given(errors, images)
def test_an_interval_holds_its_error_and_stays_a_percentage(error, of):
    low, high = wilson(error, of)
    assert 0 <= low <= error + 1e-9
    assert error - 1e-9 <= high <= 100


@given(errors, errors, images)
def test_a_difference_turns_its_sign_with_its_sides(left, right, of):
    low, high = difference(left, right, of)
    assert difference(right, left, of) == pytest.approx((-high, -low))
    assert low - 1e-9 <= left - right <= high + 1e-9


def test_more_images_tell_more():
    assert within_noise(2.1, 1.9, 360)
    assert not within_noise(2.1, 1.9, 1_000_000)


@pytest.mark.parametrize("bad", [-0.1, 100.1, math.nan])
def test_what_is_no_percentage_is_refused(bad):
    with pytest.raises(ValueError, match="an error must be between 0 and 100 percent"):
        wilson(bad, 10)


def test_no_images_no_interval():
    with pytest.raises(ValueError, match="at least one image, but got 0"):
        wilson(1.0, 0)
