"""Methods at equal size: each one's error along its own front, between the two points that stand beside the size asked.

A method of few sizes (shuffle, Tucker in many dimensions) rarely has the size of another. Error is taken as linear in
the logarithm of size between neighbouring points of the method's own front, and never beyond its ends. Both neighbours
are interpolated seed by seed where they share seeds, so that means, intervals and paired differences are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from analysis.stats.front import FrontPoint, SizeMeasure, Stratum, best_by_method, pareto_front
from analysis.stats.intervals import Estimate, t_interval
from analysis.stats.seeds import group_by_setting
from sweeps.records.model import StudyRecord

EQUAL_SIZE_TOLERANCE = 0.01  # sizes this close, as a share, count as equal: what a budget's last step leaves unused

ErrorsBySeed = Mapping[int, float]  # seed -> validation error in percent


@dataclass(frozen=True, kw_only=True)
class MethodAtSize:
    """A method's validation error (percent) at one size; `below` and `above` are the same point where it has that size.

    `by_seed` holds the seeds that both points have, one value each.
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
        return t_interval(list(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True, kw_only=True)
class SizeLevel:
    """The methods at one size, lowest error first, and those whose front does not reach it, with its two ends."""

    size: int
    measure: SizeMeasure
    methods: tuple[MethodAtSize, ...]
    beyond: tuple[tuple[str, int, int], ...]


def methods_at_size(points: Sequence[FrontPoint], size: int, measure: SizeMeasure = "params") -> list[MethodAtSize]:
    """Every method whose front reaches `size`, lowest error first; raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"a size must be at least 1, but got {size}")
    seeds = errors_by_seed(points)
    found = (_along(pareto_front(own, measure), size, measure, seeds) for own in _group_by_method(points).values())
    return sorted((each for each in found if each), key=lambda each: (each.error, each.method))


def size_level(
    points: Sequence[FrontPoint], fitting: Sequence[FrontPoint], asked: tuple[int, SizeMeasure]
) -> SizeLevel | None:  # fmt: skip
    """The methods at one size, where the sizes of their best within the budget (`fitting`) differ; else None.

    The size is the one asked, or that of the best if more methods reach that: a budget's last step leaves a gap, and
    nothing stands beyond the largest budget.
    """
    limit, measure = asked
    winners = best_by_method(fitting)
    sizes = [size for point in winners if (size := point.size(measure))]
    if len(sizes) < 2 or sizes_equal(*sizes):
        return None
    found = [(size, methods_at_size(points, size, measure)) for size in (limit, winners[0].size(measure)) if size]
    found = [pair for pair in found if any(each.method == winners[0].method for each in pair[1])]
    size, methods = max(found, key=lambda pair: len(pair[1]), default=(limit, []))
    if len(methods) < 2:
        return None
    there = {each.method for each in methods}
    ends = {name: _ends(own, measure) for name, own in _group_by_method(points).items() if name not in there}
    beyond = tuple((name, *each) for name, each in sorted(ends.items()) if each)
    return SizeLevel(size=size, measure=measure, methods=tuple(methods), beyond=beyond)


def _ends(own: Sequence[FrontPoint], measure: SizeMeasure) -> tuple[int, int] | None:
    sizes = [size for point in pareto_front(own, measure) if (size := point.size(measure))]
    return (min(sizes), max(sizes)) if sizes else None


def size_limit(stratum: Stratum, study: StudyRecord) -> tuple[int, SizeMeasure] | None:
    """The limit of a stratum and in what it is; None where the study limits neither parameters nor mult-adds alone.

    A limit on mult-adds is what its trials have and have left unused together; of a range it is the largest.
    """
    if stratum.params is not None:
        return stratum.params, "params"
    asked = study.header.get("space", {}).get("budget") or {}
    if asked.get("mult_adds") is None or any(asked.get(name) is not None for name in ("params", "bytes", "step_ms")):
        return None
    limits = [
        trial.counts["mult_adds"] + trial.counts["budget_gap"]
        for trial in study.trials.values()
        if trial.stratum == stratum.label and {"mult_adds", "budget_gap"} <= set(trial.counts)
    ]
    return (max(limits), "mult_adds") if limits else None


def errors_by_seed(points: Iterable[FrontPoint]) -> dict[str, dict[int, float]]:
    """Of every setting the validation error (percent) of each of its finished seeds."""
    return {
        setting: {point.seed or 0: point.own_error for point in group}
        for setting, group in group_by_setting(points).items()
    }


def paired_difference(left: ErrorsBySeed, right: ErrorsBySeed) -> Estimate | None:
    """The difference `left - right` over the seeds of both, with its interval; None with fewer than two."""
    gaps = [left[seed] - right[seed] for seed in left if seed in right]
    return t_interval(gaps) if len(gaps) > 1 else None


def sizes_equal(*sizes: int) -> bool:
    """Whether sizes count as equal."""
    return max(sizes) - min(sizes) <= EQUAL_SIZE_TOLERANCE * max(sizes)


def _group_by_method(points: Iterable[FrontPoint]) -> dict[str, list[FrontPoint]]:
    methods: dict[str, list[FrontPoint]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    return methods


def _along(
    own: Sequence[FrontPoint], size: int, measure: SizeMeasure, seeds: Mapping[str, ErrorsBySeed]
) -> MethodAtSize | None:  # fmt: skip
    """The front `own` (by size) at `size`; None beyond its ends."""
    sized = [(found, point) for point in own if (found := point.size(measure))]
    near = [(abs(found - size), point) for found, point in sized if sizes_equal(found, size)]
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
    own = {seed: (1 - share) * low[seed] + share * high[seed] for seed in low if seed in high}
    error = (1 - share) * below.error + share * above.error
    return MethodAtSize(method=below.method, size=size, error=error, below=below, above=above, by_seed=own)
