"""Wrong images of several seeds and settings, lined up."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.front import collect_points
from analysis.stats.inference.intervals import Z_95
from analysis.stats.inference.paired import tango_interval
from analysis.stats.wrong_images import pair_images, same_images_difference, stack_seeds, wrong_by_setting
from sweeps.records.load import load_study
from tests.support.synthetic_study import Plan, write_study


def test_each_completed_trial_of_a_study_has_the_wrong_images_of_its_error(tmp_path):
    study = load_study(write_study(tmp_path, Plan(trials=12, wrong_images=True)))
    wrong = wrong_by_setting(study)
    finished = [point for point in collect_points(study) if point.finished]
    assert set(wrong) == {point.setting for point in finished}
    for point in finished:
        assert 100 * wrong[point.setting][point.seed].mean() == pytest.approx(point.own_error)


def test_a_study_of_an_older_version_has_none(tmp_path):
    assert wrong_by_setting(load_study(write_study(tmp_path, Plan(trials=4)))) == {}


def test_two_settings_are_lined_up_over_the_seeds_of_both():
    first = {0: np.array([True, False]), 2: np.array([True, True]), 1: np.array([False, False])}
    second = {2: np.array([False, True]), 1: np.array([True, False]), 7: np.array([True, True])}
    pair = pair_images(first, second)
    assert pair.seeds == (1, 2)
    assert pair.first.tolist() == [[False, False], [True, True]]
    assert pair.second.tolist() == [[True, False], [False, True]]
    assert stack_seeds(first).tolist() == [[True, False], [False, False], [True, True]]


def test_no_common_seed_or_another_number_of_images_is_no_pair():
    two, three = np.zeros(2, dtype=bool), np.zeros(3, dtype=bool)
    assert pair_images({0: two}, {1: two}) is None
    assert pair_images({0: two}, {0: three}) is None
    assert pair_images({}, {}) is None
    assert stack_seeds({0: two, 1: three}) is None
    assert stack_seeds({}) is None


def test_settings_that_share_no_seed_are_still_compared_on_the_same_images():
    first, second = np.arange(100) < 30, np.arange(100) < 40
    difference = same_images_difference({0: first}, {7: second})
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-10, *tango_interval(0, 10, 100, Z_95)))
    assert same_images_difference({0: first}, {7: second[:50]}) is None
    assert same_images_difference({}, {7: second}) is None
