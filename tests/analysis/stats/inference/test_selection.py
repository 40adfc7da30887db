"""The error of the best of many settings, corrected for the choice."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.multitest import multipletests

from analysis.stats.inference.multiple import holm_p_values
from analysis.stats.inference.selection import choose, corrected_difference, corrected_error, expand_counts


def draw(settings_: int, seeds: int, images: int, share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((settings_, seeds, images)) < share


def test_a_single_setting_needs_no_correction():
    wrong = draw(1, 1, 288, 0.05)
    selected = corrected_error(wrong)
    assert selected.chosen == 0
    assert selected.mean == pytest.approx(selected.observed) == pytest.approx(100 * wrong.mean())


def test_the_best_of_equal_settings_is_as_good_as_all_of_them():
    """The measured error is far too low, the corrected one is right in the mean."""
    selected = [corrected_error(draw(24, 1, 288, 0.05, seed)) for seed in range(120)]
    assert np.mean([result.observed for result in selected]) < 3.2
    assert np.mean([result.mean for result in selected]) == pytest.approx(5.0, abs=0.35)


def test_a_setting_that_is_clearly_best_is_left_as_it_is():
    wrong = np.concatenate([draw(1, 1, 400, 0.02), draw(10, 1, 400, 0.4, seed=1)])
    selected = corrected_error(wrong)
    assert selected.chosen == 0
    assert selected.mean == pytest.approx(selected.observed)


def test_an_interval_is_made_wide_enough_for_an_error_that_is_shown_beside_it():
    selected = corrected_error(draw(3, 1, 288, 0.1))
    assert selected.around(selected.mean) == (selected.low, selected.high)
    assert selected.around(selected.low - 1) == (selected.low - 1, selected.high)
    assert selected.around(selected.high + 1) == (selected.low, selected.high + 1)


def test_a_screening_seed_is_not_measured_on():
    """All settings were chosen for their first seed, which is never wrong: the other seeds tell the truth."""
    wrong = np.concatenate([np.zeros((4, 1, 300), dtype=bool), draw(4, 2, 300, 0.1)], axis=1)
    assert corrected_error(wrong, screened=True).mean == pytest.approx(10.0, abs=1.5)
    assert corrected_error(wrong, screened=False).mean < 8


def test_the_difference_to_a_reference_is_on_the_same_images():
    reference = draw(1, 1, 500, 0.2)[0]
    wrong = np.stack([reference] * 3)
    difference = corrected_difference(wrong, reference)
    assert difference.mean == pytest.approx(0.0, abs=1e-9)
    assert difference.upper < 1.0  # a Newcombe interval would reach to 5 points


def test_the_same_images_are_needed():
    with pytest.raises(ValueError, match="same images, but got 50 and 60"):
        corrected_difference(draw(2, 1, 50, 0.1), draw(1, 1, 60, 0.1)[0])
    with pytest.raises(ValueError, match="none of them empty"):
        corrected_error(draw(0, 1, 50, 0.1))


@given(st.integers(1, 8), st.integers(1, 3), st.integers(8, 150), st.floats(0, 0.7), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_interval_holds_its_estimate_and_lies_between_0_and_100(count, seeds, images, share, screened, seed):
    wrong, other = draw(count, seeds, images, share, seed), draw(1, seeds, images, share, seed + 1)[0]
    screened = screened and seeds > 1
    selected = corrected_error(wrong, screened)
    assert 0 <= selected.low <= selected.mean <= selected.high <= 100
    assert selected.chosen == choose(wrong)
    difference = corrected_difference(wrong, other, screened)
    assert -100 <= difference.low <= difference.mean <= difference.upper + 1e-9
    assert difference.upper <= difference.high + 1e-9


def test_counts_are_laid_out_as_often_as_the_error_says():
    wrong = expand_counts([2.5, 0.0, 100.0], 200)
    assert wrong.sum(axis=1).tolist() == [5, 0, 200]


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005, 0.9], [0.5, 0.5]])
def test_holms_correction_is_that_of_statsmodels(p_values):
    assert holm_p_values(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holms_correction_keeps_the_order_and_skips_what_has_no_value():
    assert holm_p_values([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm_p_values([None]) == [None]
    assert holm_p_values([]) == []
