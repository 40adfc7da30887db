"""Settings of several seeds: against the right base, with every lost seed counted."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.reporting.tables import repeats_table
from analysis.stats.front import collect_points
from analysis.stats.inference.paired import paired_error_difference, seed_variance
from analysis.stats.seeds import mean_by_seed, repeated_settings
from analysis.stats.wrong_images import wrong_by_setting
from sweeps.records.events import Role, Status
from tests.support.synthetic_data import study, trial, trial_of_images


def seeds_of(name, errors, **fields):
    return [trial(f"{name}{seed}", error=error, seed=seed, **fields) for seed, error in enumerate(errors)]


def test_the_base_is_the_reference_and_no_searched_setting_of_more_seeds():
    record = study(
        trial("r", 1000, 2.0, method="separable", role=Role.REFERENCE),
        *seeds_of("s", (6.0, 6.2), params=1000, method="separable", dims=None, train__weight_decay=0.1),
        *seeds_of("c", (4.0, 4.2), params=100),
    )
    gaps = {setting.point.method: setting.gap.mean for setting in repeated_settings(collect_points(record))}
    assert gaps == pytest.approx({"cp": 2.0, "separable": 4.0})  # over seed 0, which the reference has


def test_without_a_reference_there_is_no_gap():
    record = study(*seeds_of("s", (6.0, 6.2), method="separable"), *seeds_of("c", (4.0, 4.2)))
    assert [setting.gap for setting in repeated_settings(collect_points(record))] == [None, None]


def test_a_gap_is_on_the_same_images_where_they_are_on_record():
    reference = {"params": 1000, "method": "separable", "role": Role.REFERENCE}
    wrong = {"r": (range(10), range(1, 10)), "c": (range(16), range(2, 18))}
    record = study(*(
        trial_of_images(f"{name}{seed}", images, seed=seed, **(reference if name == "r" else {}))
        for name, seeds in wrong.items() for seed, images in enumerate(seeds)
    ))  # fmt: skip
    bits = {name: np.array([np.isin(np.arange(100), images) for images in seeds]) for name, seeds in wrong.items()}
    paired = paired_error_difference(bits["c"], bits["r"], seed_variance(bits.values()))
    points = collect_points(record)
    (setting,) = [r for r in repeated_settings(points, wrong=wrong_by_setting(record)) if r.point.method == "cp"]
    assert (setting.gap.mean, setting.gap.low, setting.gap.high) == pytest.approx((6.5, paired.low, paired.high))
    assert setting.same_images
    (unpaired,) = [r for r in repeated_settings(points) if r.point.method == "cp"]
    assert (unpaired.gap.mean, unpaired.same_images) == (pytest.approx(6.5), False)
    assert repeats_table([setting, unpaired]).texts[0][5].startswith("+6.50 (")
    assert [row[-1] for row in repeats_table([setting, unpaired]).rows] == [True, False]


def test_seeds_that_were_stopped_early_are_counted_as_lost():
    first = trial("a", error=3.0)
    stopped = [trial(f"b{seed}", error=9.0, seed=seed, status=Status.STOPPED) for seed in (1, 2)]
    (point,) = [point for point in collect_points(study(first, *stopped)) if point.finished]
    assert (point.error, point.seeds, point.lost) == (3.0, 1, "2 of 3 seeds stopped early")


def test_two_trials_of_one_seed_count_by_their_mean():
    assert mean_by_seed([(0, 2.0), (1, 3.0), (0, 4.0)]) == {0: 3.0, 1: 3.0}
    assert mean_by_seed([(None, 2.0)]) == {0: 2.0}
