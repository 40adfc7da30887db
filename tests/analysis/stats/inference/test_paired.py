"""Differences on the same images: the formulas against independent calculations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar

from analysis.stats.inference.paired import (
    SeedVariance,
    mcnemar_p_value,
    mean_error_interval,
    mean_variance,
    paired_error_difference,
    seed_variance,
    tango_interval,
    two_level_bootstrap,
)

Z = 1.959963984540054


def score(b: int, c: int, n: int, gap: float) -> float:
    """The score statistic, its nuisance probability found by maximising the likelihood instead of by the formula."""

    def negative_log_likelihood(only_second: float) -> float:
        shares = (only_second + gap, only_second, 1 - 2 * only_second - gap)
        return -sum(
            count * math.log(max(share, 1e-300)) for count, share in zip((b, c, n - b - c), shares, strict=True)
        )

    low, high = max(0.0, -gap), (1 - gap) / 2
    share = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * gap) / math.sqrt(n * (2 * share + gap - gap * gap))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 288), (1, 7, 60), (5, 5, 100), (40, 10, 2000), (9, 1, 14)])
def test_tangos_ends_are_where_the_score_statistic_is_the_quantile(b, c, n):
    low, high = tango_interval(b, c, n, Z)
    assert score(b, c, n, low / 100) == pytest.approx(Z, abs=1e-4)
    assert score(b, c, n, high / 100) == pytest.approx(-Z, abs=1e-4)


def test_networks_that_are_never_wrong_alone_may_still_differ_a_little():
    low, high = tango_interval(0, 0, 288, Z)
    assert high == pytest.approx(100 * Z**2 / (288 + Z**2), abs=1e-6)  # Wilson's upper end of none in 288
    assert low == -high


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 3000))
@settings(max_examples=60, deadline=None)
def test_tangos_interval_holds_the_difference_and_turns_with_the_order(b, c, n):
    low, high = tango_interval(b, c, n, Z)
    assert low - 1e-9 <= 100 * (b - c) / n <= high + 1e-9
    assert tango_interval(c, b, n, Z) == pytest.approx((-high, -low), abs=1e-9)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="between 0 and the number of images, but got 8, 5 of 12"):
        tango_interval(8, 5, 12, Z)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 12), (25, 21)])
def test_mcnemars_test_is_that_of_statsmodels(b, c):
    expected = mcnemar([[50, b], [c, 7]], exact=True).pvalue
    assert mcnemar_p_value(b, c) == pytest.approx(expected)


def test_the_variance_of_one_seed_is_that_of_its_images():
    values = np.random.default_rng(0).random((1, 50))
    assert mean_variance(values).variance == pytest.approx(values.var(ddof=1) / 50)


def test_the_variance_over_seeds_and_images_is_that_of_the_two_way_layout():
    """On average over made-up layouts it is the variance with which their means scatter."""
    random = np.random.default_rng(1)
    seeds, images, draws = 4, 30, 3000
    values = (
        0.3 * random.standard_normal((draws, seeds, 1)) + 0.8 * random.standard_normal((draws, 1, images))
        + random.standard_normal((draws, seeds, images))
    )  # fmt: skip
    expected = 0.09 / seeds + 0.64 / images + 1 / (seeds * images)
    assert np.var(values.mean(axis=(1, 2))) == pytest.approx(expected, rel=0.08)
    estimates = [mean_variance(study).variance for study in values]
    assert np.mean(estimates) == pytest.approx(expected, rel=0.08)


def test_a_pooled_variance_between_seeds_has_the_seeds_of_all_settings():
    random = np.random.default_rng(2)
    settings_ = [random.random((seeds, 400)) < 0.1 for seeds in (3, 1, 5)]
    pooled = seed_variance(settings_)
    assert pooled is not None
    assert pooled.freedom == 2 + 4
    own = [wrong.mean(axis=1).var(ddof=1) for wrong in settings_ if len(wrong) > 1]
    assert pooled.variance == pytest.approx((2 * own[0] + 4 * own[1]) / 6)
    assert seed_variance(settings_[1:2]) is None


def test_one_seed_gives_mcnemars_test_and_tangos_interval():
    first, second = np.zeros((1, 100), dtype=bool), np.zeros((1, 100), dtype=bool)
    first[0, :9], second[0, 8:12] = True, True
    difference = paired_error_difference(first, second)
    assert difference.mean == pytest.approx(5.0)
    assert (difference.low, difference.high) == tango_interval(8, 3, 100, Z)
    assert difference.p_value == mcnemar_p_value(8, 3)


def test_seeds_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"same seeds and images, but got \(1, 5\) and \(2, 5\)"):
        paired_error_difference(np.zeros((1, 5), dtype=bool), np.zeros((2, 5), dtype=bool))


@given(st.integers(1, 4), st.integers(20, 200), st.floats(0, 0.6), st.floats(0, 0.6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_interval_holds_its_estimate(seeds, images, first_share, second_share, seed):
    random = np.random.default_rng(seed)
    first, second = random.random((seeds, images)) < first_share, random.random((seeds, images)) < second_share
    difference = paired_error_difference(first, second)
    assert difference.low - 1e-9 <= difference.mean <= difference.high + 1e-9
    mean, low, high = mean_error_interval(first)
    assert low - 1e-9 <= mean <= high + 1e-9


def test_many_seeds_make_a_mean_more_certain_than_one():
    random = np.random.default_rng(3)
    wrong = random.random((5, 300)) < 0.1
    _, low, high = mean_error_interval(wrong, SeedVariance(variance=0.0, interaction=0.0, freedom=50))
    _, one_low, one_high = mean_error_interval(wrong[:1])
    assert high - low < one_high - one_low


def test_a_bootstrap_of_two_levels_agrees_where_there_are_many_seeds():
    random = np.random.default_rng(4)
    values = random.standard_normal((40, 1)) + random.standard_normal((1, 200))  # no interaction, counted three times
    low, high = two_level_bootstrap(values, 1000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * Z * math.sqrt(mean_variance(values).variance), rel=0.1)
