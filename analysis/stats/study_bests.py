"""The best of several studies within each budget, against that of the first study.

On the same images where the records of both say which were wrong; else over seeds, or as two samples of images. The
p-values are corrected for their number by Holm's method. Neither best is corrected for having been chosen: a study that
tried more settings has an advantage, so the expected best of equally many settings stands beside each difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.stats.equal_size import ErrorsBySeed, errors_by_seed, paired_difference
from analysis.stats.expected_best import expected_best
from analysis.stats.front import FrontPoint, Stratum, best_point, collect_points, study_strata, validation_images
from analysis.stats.inference.intervals import LEVEL, Estimate, image_p_value, newcombe_interval, t_test_p_value
from analysis.stats.inference.multiple import holm_p_values
from analysis.stats.inference.paired import SeedVariance
from analysis.stats.wrong_images import (
    WrongBySeed,
    pooled_seed_variance,
    same_images_difference,
    wrong_by_setting,
)
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class BestDifference:
    """The best of a study within a budget, against that of the first study.

    Attributes:
        budget: in words.
        study: name of the study.
        base_study: name of the first study.
        best: the best point of the study.
        base: the best point of the first study.
        gap: error of the study's best less that of the base, in points; `count` is the number of seeds of both.
        same_images: whether `gap` is on the same images.
        p_value: of "no difference", corrected for all differences shown; None where nothing gives an interval.
        n: the smaller number of settings that the two studies tried within the budget.
        expected: expected best of n settings of the study, in percent.
        base_expected: that of the first study.
    """

    budget: str
    study: str
    base_study: str
    best: FrontPoint
    base: FrontPoint
    gap: Estimate
    same_images: bool
    p_value: float | None
    n: int
    expected: float
    base_expected: float

    @property
    def verdict(self) -> str:
        """In words, after the correction for the number of differences."""
        if self.p_value is None:
            return "no interval"
        if self.p_value > 1 - LEVEL:
            return "within noise"
        one_seed = ", of one seed" if self.gap.count == 1 else ""  # another seed may turn it
        return f"{'better' if self.gap.mean < 0 else 'worse'}{one_seed}"


@dataclass(frozen=True)
class _Study:
    record: StudyRecord
    points: Sequence[FrontPoint]
    wrong: Mapping[str, WrongBySeed]
    errors: Mapping[str, ErrorsBySeed]  # of each setting

    @classmethod
    def of(cls, record: StudyRecord) -> _Study:
        points = collect_points(record)
        return cls(record, points, wrong_by_setting(record), errors_by_seed(points))


def best_differences(studies: Sequence[StudyRecord]) -> list[BestDifference]:
    """Compare the best of each study within each budget with that of the first study.

    Args:
        studies: two or more, of the same data and split.

    Returns:
        The surest difference first. Budgets are those that all studies have by name; without any, all sizes are one.

    Raises:
        InputError: a record of wrong images is damaged.
    """
    base, *others = map(_Study.of, studies)
    variances = [pooled_seed_variance([*other.wrong.values(), *base.wrong.values()]) for other in others]
    labels = [{stratum.label for stratum in study_strata(study)} for study in studies]
    shared = set.intersection(*labels)
    budgets = [stratum for stratum in study_strata(base.record) if stratum.label in shared]
    budgets = budgets or [Stratum(label="any size", unlimited=True)]
    pairs = [
        _compare(budget, other, base, between_seeds)
        for budget in budgets
        for other, between_seeds in zip(others, variances, strict=True)
    ]
    rows = [pair for pair in pairs if pair is not None]
    corrected = holm_p_values([row.p_value for row in rows])
    rows = [replace(row, p_value=p_value) for row, p_value in zip(rows, corrected, strict=True)]
    return sorted(rows, key=lambda row: 1.0 if row.p_value is None else row.p_value)


def _compare(
    budget: Stratum, study: _Study, base: _Study, between_seeds: SeedVariance | None
) -> BestDifference | None:  # fmt: skip
    """None where one of them has no setting within the budget."""
    fitting = [[point for point in entry.points if budget.holds(point)] for entry in (study, base)]
    best, base_best = best_point(fitting[0]), best_point(fitting[1])
    if best is None or base_best is None:
        return None
    errors = [[point.own_error for point in points if point.eligible] for points in fitting]
    n = min(map(len, errors))
    gap, same_images, p_value = _difference(study, best, base, base_best, between_seeds)
    return BestDifference(
        budget=budget.label, study=study.record.name, base_study=base.record.name, best=best, base=base_best, gap=gap,
        same_images=same_images, p_value=p_value, n=n, expected=expected_best(errors[0], n),
        base_expected=expected_best(errors[1], n),
    )  # fmt: skip


def _difference(
    study: _Study, best: FrontPoint, base: _Study, base_best: FrontPoint, between_seeds: SeedVariance | None
) -> tuple[Estimate, bool, float | None]:
    """The difference, whether it is on the same images, and its p-value."""
    ours, theirs = study.wrong.get(best.setting, {}), base.wrong.get(base_best.setting, {})
    paired = same_images_difference(ours, theirs, between_seeds)
    if paired is not None:
        return paired.estimate, True, paired.p_value
    over_seeds = paired_difference(study.errors[best.setting], base.errors[base_best.setting])
    if over_seeds is not None:
        return over_seeds, False, t_test_p_value(over_seeds)
    mean, images = best.error - base_best.error, validation_images(study.record)
    if images is None:
        return Estimate(mean=mean, low=None, high=None, count=1), False, None
    low, high = newcombe_interval(best.error, base_best.error, images)
    return Estimate(mean=mean, low=low, high=high, count=1), False, image_p_value(best.error, base_best.error, images)
