"""The best of several studies within each budget, against that of the first study.

On the same images where the records of both say which were wrong; else over seeds, or as two samples of images. On the
same images a verdict is corrected for the choice in both studies; else it is that of two networks fixed beforehand,
which the sentences say. The p-values are corrected for their number by Holm's method. A study that tried more settings
has an advantage, so the expected best of equally many settings stands beside each difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.stats.equal_size import ErrorsBySeed, errors_by_seed, paired_difference
from analysis.stats.expected_best import expected_best
from analysis.stats.front import FrontPoint, Stratum, best_point, collect_points, study_strata, validation_images
from analysis.stats.inference.intervals import Estimate, image_p_value, newcombe_interval, t_test_p_value
from analysis.stats.inference.multiple import count_compared, describe_verdict, holm_p_values
from analysis.stats.inference.paired import SeedVariance
from analysis.stats.inference.selection import SelectedDifference, corrected_difference
from analysis.stats.seeds import is_screened
from analysis.stats.wrong_images import (
    WrongBySeed,
    pooled_seed_variance,
    same_images_difference,
    stack_settings,
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
        selected: the difference corrected for the choice in both studies; None where neither had a choice, or the wrong
            images are not on record.
        uncorrected: the p-value of "no difference"; None where nothing gives an interval.
        p_value: the same, corrected for all differences shown.
        comparisons: how many these are.
        has_choice: whether one of the studies had more than one setting within the budget.
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
    selected: SelectedDifference | None
    uncorrected: float | None
    has_choice: bool
    n: int
    expected: float
    base_expected: float
    p_value: float | None = None
    comparisons: int = 1

    @property
    def verdict(self) -> str:
        """In words, after the correction for the number of differences."""
        gap, selected = self.gap, self.selected
        if selected is not None:
            gap = replace(gap, mean=selected.mean, low=selected.low, high=selected.high)
        if self.p_value is None:
            return "no interval"
        words = describe_verdict(gap, self.uncorrected, self.p_value, self.comparisons, "no interval")
        one_seed = ", of one seed" if self.gap.count == 1 else ""  # another seed may turn it
        return f"{words}{one_seed}" if words in ("better", "worse") else words

    @property
    def ignores_choice(self) -> bool:
        """Whether a choice was made that the verdict does not pay for."""
        return self.selected is None and self.has_choice


@dataclass(frozen=True)
class _Study:
    record: StudyRecord
    points: Sequence[FrontPoint]
    wrong: Mapping[str, WrongBySeed]
    errors: Mapping[str, ErrorsBySeed]  # of each setting
    screened: bool

    @classmethod
    def of(cls, record: StudyRecord) -> _Study:
        points = collect_points(record)
        return cls(record, points, wrong_by_setting(record), errors_by_seed(points), is_screened(record))

    def stack(self, points: Sequence[FrontPoint]) -> NDArray[np.bool_] | None:
        """The wrong images of the settings among which the best is chosen."""
        return stack_settings([self.wrong.get(point.setting, {}) for point in points])


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
    corrected = holm_p_values([row.uncorrected for row in rows])
    count = count_compared(corrected)
    rows = [replace(row, p_value=p_value, comparisons=count) for row, p_value in zip(rows, corrected, strict=True)]
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
    candidates = [[point for point in points if point.eligible and point.competes] for points in fitting]
    has_choice = max(map(len, candidates)) > 1
    selected = _corrected(study, candidates[0], base, candidates[1], between_seeds) if has_choice else None
    return BestDifference(
        budget=budget.label, study=study.record.name, base_study=base.record.name, best=best, base=base_best, gap=gap,
        same_images=same_images, selected=selected, uncorrected=selected.p_value if selected else p_value,
        has_choice=has_choice, n=n, expected=expected_best(errors[0], n),
        base_expected=expected_best(errors[1], n),
    )  # fmt: skip


def _corrected(
    study: _Study, candidates: Sequence[FrontPoint], base: _Study, base_candidates: Sequence[FrontPoint],
    between_seeds: SeedVariance | None,
) -> SelectedDifference | None:  # fmt: skip
    """None where the wrong images of a candidate are not on record. Equally many seeds of both, maybe other ones."""
    wrong, other = study.stack(candidates), base.stack(base_candidates)
    if wrong is None or other is None or wrong.shape[2] != other.shape[2]:
        return None
    seeds = min(wrong.shape[1], other.shape[1])
    screened = [entry.screened and seeds > 1 for entry in (study, base)]
    return corrected_difference(wrong[:, :seeds], other[:, :seeds], screened[0], between_seeds, screened[1])


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
