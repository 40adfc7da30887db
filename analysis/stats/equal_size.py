"""Methods at equal size: the error of each along its own front, between the two points next to the size in question.

A method of few sizes (shuffle, Tucker in many dimensions) rarely has the size of another. Between neighbouring points
of the method's own front the error is taken as linear in the logarithm of size, and never beyond its ends. Both
neighbours are interpolated seed by seed where they share seeds, so that means, intervals and paired differences are
over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from analysis.stats.front import FrontPoint, SizeMeasure, Stratum, best_by_method, pareto_front
from analysis.stats.inference.intervals import Estimate, error_interval, t_interval
from analysis.stats.seeds import group_by_setting, mean_by_seed
from sweeps.records import StudyRecord

EQUAL_SIZE_TOLERANCE = 0.01  # sizes this close, as a share, count as equal: what a budget's last step leaves unused

ErrorsBySeed = Mapping[int, float]  # seed -> validation error in percent


@dataclass(frozen=True, kw_only=True)
class MethodAtSize:
    """The validation error of a method at one size.

    Attributes:
        method: its name.
        size: in the measure of the comparison.
        error: in percent, interpolated where the method has no point of that size; the mean of `by_seed` where the two
            points share seeds, so that it lies within the interval over these.
        below: the next smaller point of its front.
        above: the next larger one; the same point where the method has that size.
        by_seed: the error for each seed that both points have.
    """

    method: str
    size: int
    error: float
    below: FrontPoint
    above: FrontPoint
    by_seed: ErrorsBySeed

    @property
    def between(self) -> bool:
        """Whether it was interpolated."""
        return self.below is not self.above

    @property
    def nearest(self) -> FrontPoint:
        """The one of the two points whose error is nearer."""
        return min((self.below, self.above), key=lambda point: abs(point.error - self.error))

    @property
    def estimate(self) -> Estimate | None:
        """The mean over seeds with its interval; None where the two points share no seed."""
        return error_interval(list(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True, kw_only=True)
class SizeLevel:
    """The methods at one size.

    Attributes:
        size: in `measure`.
        measure: of size.
        methods: those whose front reaches the size, lowest error first.
        beyond: the others: name, smallest and largest size of the front.
    """

    size: int
    measure: SizeMeasure
    methods: tuple[MethodAtSize, ...]
    beyond: tuple[tuple[str, int, int], ...]


def methods_at_size(points: Sequence[FrontPoint], size: int, measure: SizeMeasure = "params") -> list[MethodAtSize]:
    """Return every method whose front reaches a size.

    Args:
        points: of a study.
        size: in `measure`.
        measure: of size.

    Returns:
        The methods, lowest error first.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"a size must be at least 1, but got {size}")
    seeds = errors_by_seed(points)
    methods = (
        _along(pareto_front(group, measure), size, measure, seeds) for group in _group_by_method(points).values()
    )
    return sorted((method for method in methods if method), key=lambda method: (method.error, method.method))


def size_level(
    points: Sequence[FrontPoint], fitting: Sequence[FrontPoint], limit: tuple[int, SizeMeasure]
) -> SizeLevel | None:  # fmt: skip
    """Compare methods at one size, where their best within a budget differ in size.

    The size is the limit, or that of the best point if more methods reach that: the last step of a budget leaves a gap,
    and no point is larger than the largest budget.

    Args:
        points: of a study.
        fitting: those within the budget.
        limit: of the budget, and its measure.

    Returns:
        The methods at that size; None where the sizes are equal, or fewer than two methods reach it.
    """
    budget, measure = limit
    winners = best_by_method(fitting)
    sizes = [size for point in winners if (size := point.size(measure))]
    if len(sizes) < 2 or sizes_equal(*sizes):
        return None
    levels = [(size, methods_at_size(points, size, measure)) for size in (budget, winners[0].size(measure)) if size]
    levels = [pair for pair in levels if any(entry.method == winners[0].method for entry in pair[1])]
    size, methods = max(levels, key=lambda pair: len(pair[1]), default=(budget, []))
    if len(methods) < 2:
        return None
    reaching = {entry.method for entry in methods}
    ends = {name: _ends(group, measure) for name, group in _group_by_method(points).items() if name not in reaching}
    beyond = tuple((name, *entry) for name, entry in sorted(ends.items()) if entry)
    return SizeLevel(size=size, measure=measure, methods=tuple(methods), beyond=beyond)


def _ends(points: Sequence[FrontPoint], measure: SizeMeasure) -> tuple[int, int] | None:
    sizes = [size for point in pareto_front(points, measure) if (size := point.size(measure))]
    return (min(sizes), max(sizes)) if sizes else None


def size_limit(stratum: Stratum, study: StudyRecord) -> tuple[int, SizeMeasure] | None:
    """Return the limit of a budget.

    Args:
        stratum: the budget.
        study: the records.

    Returns:
        The limit and its measure; None where the study limits neither parameters nor mult-adds alone. A limit on
        mult-adds is the sum of those that a trial has and those that it left unused; of a range it is the largest.
    """
    if stratum.params is not None:
        return stratum.params, "params"
    budget = study.header.section("budget")
    if budget.get("mult_adds") is None or any(budget.get(name) is not None for name in ("params", "bytes", "step_ms")):
        return None
    limits = [
        trial.counts["mult_adds"] + trial.counts["budget_gap"]
        for trial in study.trials.values()
        if trial.stratum == stratum.label and {"mult_adds", "budget_gap"} <= set(trial.counts)
    ]
    return (max(limits), "mult_adds") if limits else None


def errors_by_seed(points: Iterable[FrontPoint]) -> dict[str, dict[int, float]]:
    """Return the validation error of each seed of every setting.

    Args:
        points: of a study; unfinished ones are ignored.

    Returns:
        Id of the setting -> seed -> error in percent.
    """
    return {
        setting: mean_by_seed((point.seed, point.own_error) for point in group)
        for setting, group in group_by_setting(points).items()
    }


def paired_difference(first: ErrorsBySeed, second: ErrorsBySeed) -> Estimate | None:
    """Return the mean difference between two settings over the seeds of both.

    Args:
        first: errors in percent by seed.
        second: likewise.

    Returns:
        The mean of `first - second` in points of error, with its interval; None with fewer than two common seeds.
    """
    gaps = [first[seed] - second[seed] for seed in first if seed in second]
    return t_interval(gaps) if len(gaps) > 1 else None


def sizes_equal(*sizes: int) -> bool:
    """Return whether sizes differ by at most `EQUAL_SIZE_TOLERANCE`.

    Args:
        sizes: one or more.

    Returns:
        Whether they count as equal.
    """
    return max(sizes) - min(sizes) <= EQUAL_SIZE_TOLERANCE * max(sizes)


def _group_by_method(points: Iterable[FrontPoint]) -> dict[str, list[FrontPoint]]:
    methods: dict[str, list[FrontPoint]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    return methods


def _along(
    front: Sequence[FrontPoint], size: int, measure: SizeMeasure, seeds: Mapping[str, ErrorsBySeed]
) -> MethodAtSize | None:  # fmt: skip
    """The front `front` (by size) at `size`; None beyond its ends."""
    sized = [(point_size, point) for point in front if (point_size := point.size(measure))]
    near = [(abs(point_size - size), point) for point_size, point in sized if sizes_equal(point_size, size)]
    if near:
        point = min(near, key=lambda pair: pair[0])[1]
        return _between(point, point, 0.0, size, seeds)
    for (small, below), (large, above) in pairwise(sized):
        if small < size < large:
            share = math.log(size / small) / math.log(large / small)
            return _between(below, above, share, size, seeds)
    return None


def _between(
    below: FrontPoint, above: FrontPoint, share: float, size: int, seeds: Mapping[str, ErrorsBySeed]
) -> MethodAtSize:
    low, high = seeds.get(below.setting, {}), seeds.get(above.setting, {})
    by_seed = {seed: (1 - share) * low[seed] + share * high[seed] for seed in low if seed in high}
    error = fmean(by_seed.values()) if by_seed else (1 - share) * below.error + share * above.error
    return MethodAtSize(method=below.method, size=size, error=error, below=below, above=above, by_seed=by_seed)
