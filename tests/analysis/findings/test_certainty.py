"""Two points of a study, compared on the same images."""

from __future__ import annotations

import pytest

from analysis.findings.study_answers.answer import answers
from analysis.findings.study_answers.certainty import compare_points, study_evidence
from analysis.stats.front import collect_points
from analysis.stats.inference.intervals import Z_95
from analysis.stats.inference.paired import tango_interval
from sweeps.records.events import Role
from tests.support.synthetic_data import study, trial, trial_of_images

SEPARABLE = {"params": 1000, "method": "separable", "dims": None, "role": Role.REFERENCE}
EVIDENCE = {"data": {"val_images": 100}}


@pytest.mark.parametrize("seed", [0, 7])
def test_an_answer_compares_on_the_same_images_whether_or_not_a_seed_is_shared(seed):
    """Of 100 images 30 and 40 are wrong: as two samples within noise, but on the same images clearly apart."""
    record = study(
        trial_of_images("a", range(30), params=100, seed=0),
        trial_of_images("r", range(40), seed=seed, **SEPARABLE),
        **EVIDENCE,
    )
    (answer,) = answers(record, collect_points(record))
    (comparison,) = [entry for entry in answer.comparisons if entry.label == "separable reference"]
    selected = comparison.chosen.selected
    assert (selected.mean, selected.low, selected.high) == pytest.approx((-10, *tango_interval(0, 10, 100, Z_95)))
    assert comparison.gap == pytest.approx(-10)
    assert comparison.within_noise is False


def test_points_without_recorded_images_are_not_compared_on_them():
    record = study(trial_of_images("a", range(30), seed=0), trial("r", error=40.0, seed=7, **SEPARABLE), **EVIDENCE)
    first, second = collect_points(record)
    assert compare_points(first, second, study_evidence(record)) is None


def test_without_two_seeds_of_both_a_gap_is_that_of_the_errors_beside_it():
    seeds = [trial(f"a{seed}", params=100, error=error, seed=seed) for seed, error in enumerate((4.0, 6.0))]
    record = study(*seeds, trial("r", error=6.0, **SEPARABLE), **EVIDENCE)
    (answer,) = answers(record, collect_points(record))
    (comparison,) = answer.comparisons
    assert answer.best is not None
    assert comparison.gap == answer.best.error - comparison.other.error == -1.0
    assert "6.00 % at 1,000, 1.00 points higher (95 % interval" in comparison.text()


def test_a_gap_over_the_seeds_of_both_says_over_how_many():
    shared = [
        trial_of_images(f"{name}{seed}", range(wrong), seed=seed, **fields)
        for name, wrongs, fields in (("a", (30, 40, 50), {"params": 100}), ("r", (40, 46), SEPARABLE))
        for seed, wrong in enumerate(wrongs)
    ]
    record = study(*shared, **EVIDENCE)
    (answer,) = answers(record, collect_points(record))
    (comparison,) = answer.comparisons
    assert comparison.gap == pytest.approx(-8)  # of 30 and 40, 40 and 46; the errors shown are 40 and 43 %
    assert "43.0 % at 1,000, 8.00 points higher (over the 2 seeds of both, " in comparison.text()
