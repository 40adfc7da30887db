"""Intervals of errors that were measured on few images."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from analysis.stats.inference.intervals import image_p_value, newcombe_interval, wilson_interval

errors, images = st.floats(0, 100), st.integers(1, 100_000)


@pytest.mark.parametrize(
    ("wrong", "of", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_agrees_with_newcombes_table_of_single_proportions(wrong, of, low, high):
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    assert wilson_interval(100 * wrong / of, of) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize(("wrong", "of"), [(0, 1), (1, 1), (3, 20), (81, 263), (9_999, 10_000)])
def test_whole_numbers_agree_with_scipy(wrong, of):
    """SciPy takes whole numbers only; the mean over several seeds is none."""
    interval = binomtest(wrong, of).proportion_ci(method="wilson")
    assert wilson_interval(100 * wrong / of, of) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)


def test_agrees_with_newcombes_table_of_differences():
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10."""
    low, high = newcombe_interval(100.0, 0.0, 10)
    assert (low, high) == pytest.approx((60.75, 100.0), abs=0.01)


@given(errors, images)
def test_an_interval_contains_its_error_and_stays_a_percentage(error, of):
    low, high = wilson_interval(error, of)
    assert 0 <= low <= error + 1e-9
    assert error - 1e-9 <= high <= 100


@given(errors, errors, images)
def test_swapping_the_errors_changes_the_sign_of_the_interval(left, right, of):
    low, high = newcombe_interval(left, right, of)
    assert newcombe_interval(right, left, of) == pytest.approx((-high, -low))
    assert low - 1e-9 <= left - right <= high + 1e-9


def test_more_images_show_smaller_differences():
    assert image_p_value(2.1, 1.9, 360) > 0.05
    assert image_p_value(2.1, 1.9, 1_000_000) < 0.05


def test_a_variance_far_above_that_of_the_images_gives_a_wide_interval():
    """Two settings of two seeds: a t quantile of 12.7, and less than one image's worth of information."""
    low, high = wilson_interval(1.25, 0.81, 12.7)
    assert low < 0.1
    assert high > 99


@pytest.mark.parametrize("bad", [-0.1, 100.1, math.nan])
def test_an_error_outside_0_to_100_is_an_error(bad):
    with pytest.raises(ValueError, match="an error must be between 0 and 100 percent"):
        wilson_interval(bad, 10)


def test_an_interval_needs_an_image():
    with pytest.raises(ValueError, match="number of images must be above 0, but got 0"):
        wilson_interval(1.0, 0)
