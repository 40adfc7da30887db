"""The study's answer in words, with the noise of few validation images stated beside every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.stats.equal_size import (
    ErrorsBySeed,
    MethodAtSize,
    SizeLevel,
    errors_by_seed,
    paired_difference,
    size_level,
    size_limit,
)
from analysis.stats.front import (
    DENSE,
    SEPARABLE,
    FrontPoint,
    SizeMeasure,
    Stratum,
    best_by_method,
    best_point,
    find_reference,
    pareto_front,
    references,
    study_strata,
    validation_images,
)
from analysis.stats.intervals import Estimate, newcombe_interval, wilson_interval
from analysis.utils.formatting import format_percent, method_label
from sweeps.records.model import StudyRecord


@dataclass(frozen=True, kw_only=True)
class PointComparison:
    """The best point against another one; `gap` is best minus other in points of error, so negative is better.

    `interval` (95 %) is that of two errors measured on so many images, `over_seeds` that of the differences between
    the seeds that both were trained with; None where the number of images, or a second seed, is missing.
    """

    label: str
    other: FrontPoint
    gap: float
    interval: tuple[float, float] | None
    over_seeds: Estimate | None = None
    level: MethodAtSize | None = None  # the other method at the size that the two are compared at, where it has another

    @property
    def within_noise(self) -> bool | None:
        """Whether an interval of the gap holds 0; None when none is known."""
        by_images = None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]
        by_seeds = None if self.over_seeds is None else not self.over_seeds.beyond_noise
        known = [each for each in (by_images, by_seeds) if each is not None]
        return any(known) if known else None

    def text(self) -> str:
        """One clause, e.g. `separable reference: 1.9 % at 755,000, 0.2 points lower (within noise)`."""
        side = "lower" if self.gap > 0 else "higher"
        where = "the same" if self.gap == 0 else f"{abs(self.gap):.2f} points {side} ({self._verdict()})"
        if self.level is not None:
            return f"{self.label}: {describe_method_at_size(self.level)}, {where}"
        return f"{self.label}: {format_percent(self.other.error)} at {self.other.params:,}, {where}"

    def _verdict(self) -> str:
        verdict = {True: "within noise", False: "beyond noise", None: "noise unknown"}[self.within_noise]
        seeds = self.over_seeds
        if seeds is None or seeds.low is None or seeds.high is None:
            return verdict
        low, high = (seeds.low, seeds.high) if self.gap > 0 else (-seeds.high, -seeds.low)
        by_images = self.within_noise and seeds.beyond_noise
        what = "but within the noise of the images" if by_images else verdict
        return f"95 % {low:.2f} to {high:.2f} over {seeds.count} seeds, {what}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is best within one budget, how sure that is, and what it is measured against."""

    stratum: Stratum
    best: FrontPoint | None
    share: float | None  # the budget (or, without one, the best point's parameters) over the separable network's
    candidates: int  # completed trials that fit
    images: int | None
    comparisons: tuple[PointComparison, ...] = ()
    level: SizeLevel | None = None  # the methods at one size, where their sizes within the budget differ

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the best point's validation error, in percent."""
        return wilson_interval(self.best.error, self.images) if self.best and self.images else None

    def text(self, smaller: Answer | None = None) -> str:
        """The answer as one to three sentences; `smaller` is the answer to the next smaller budget, if there is one."""
        if self.best is None:
            return f"{self._where()}: no trial was completed."
        share = "" if self.stratum.params else self._share()
        size = f"{self.best.params:,} parameters{share}"
        found = f"{self._where()}: {self.best.name}, {size}: {format_percent(self.best.error)}"
        if smaller is not None and smaller.best == self.best:
            same = f"{found}, as within the smaller budget (best of {self.candidates} completed)."
            return f"{same} {describe_size_level(self.level)}" if self.level else same
        found += " validation error"
        sentences = [f"{found} ({self._certainty()})."]
        if self.comparisons:
            clauses = "; ".join(comparison.text() for comparison in self.comparisons)
            sentences.append(f"{clauses[0].upper()}{clauses[1:]}.")
        if self.level:
            sentences.append(describe_size_level(self.level))
        return " ".join(sentences)

    def _where(self) -> str:
        if self.stratum.params:
            return f"At up to {self.stratum.params:,} parameters{self._share()}"
        label = self.stratum.label or "any size"
        return f"{label[0].upper()}{label[1:]}"

    def _share(self) -> str:
        return f" ({100 * self.share:.3g} % of separable)" if self.share is not None else ""

    def _certainty(self) -> str:
        assert self.best is not None
        parts = [f"n = {self.best.seeds} seed{'s' * (self.best.seeds != 1)}"]
        if self.best.lost:
            parts.append(self.best.lost)
        if self.best.spread is not None:
            parts.append(f"standard deviation {self.best.spread:.2f} points")
        if self.interval is not None:
            low, high = self.interval
            parts.append(
                f"{self.images:,} validation images, so ±{(high - low) / 2:.1f} points: "
                f"95 % Wilson interval {low:.1f} to {high:.1f} %"
            )
        parts.append(f"best of {self.candidates} completed")
        return ", ".join(parts)


def answers(study: StudyRecord, points: Sequence[FrontPoint]) -> list[Answer]:
    """Answer a study's question within each of its budgets.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        One answer a budget, smallest first; a study without budgets has one, for any size.
    """
    images = validation_images(study)
    budgets = study_strata(study) or [Stratum(label="any size", unlimited=True)]
    return [_answer(stratum, points, images, size_limit(stratum, study)) for stratum in budgets]


def answer_text(study: StudyRecord, points: Sequence[FrontPoint]) -> str:
    """Return the whole answer in words.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        A paragraph a budget, then what the references reached and what the front is.
    """
    found = answers(study, points)
    tried = {trial.stratum for trial in study.trials.values()}
    bare = [answer for answer in found if answer.best is None and answer.stratum.label not in tried]
    bare = bare if 1 < len(bare) < len(found) else []
    texts = [(answer, answer.text(smaller)) for smaller, answer in zip([None, *found], found, strict=False)]
    paragraphs = [text for answer, text in texts if answer not in bare]
    if bare:
        paragraphs.insert(
            0, f"Nothing was tried in {len(bare)} strata: {'; '.join(each.stratum.label for each in bare)}."
        )
    known = [
        f"{method_label(p.method)} {format_percent(p.error)} at {p.params:,} parameters" for p in references(points)
    ]
    paragraphs.append(f"References: {'; '.join(known)}." if known else "No reference network was trained to its end.")
    kept = pareto_front(points)
    if kept:
        plural = "s" * (len(kept) != 1)
        ends = dict.fromkeys(f"{point.params:,}" for point in (kept[0], kept[-1]))
        paragraphs.append(
            f"The front has {len(kept)} point{plural}, of {' to '.join(ends)} parameters; only "
            "trials trained to their end are on it, and all errors here are on validation images."
        )
    return "\n".join(paragraphs)


def describe_size_level(level: SizeLevel, *, brief: bool = False) -> str:
    """The methods at equal size, in one sentence; a `brief` one does not say what was interpolated."""
    listed = []
    for each in level.methods:
        ends = [f"{point.size(level.measure):,}" for point in (each.below, each.above)]
        how = f" (interpolated, {' to '.join(ends)})" if each.between and not brief else ""
        listed.append(f"{describe_method_at_size(each)}{how}")
    ends = [
        f"{method_label(name)} ({low:,})" if low == high else f"{method_label(name)} ({low:,} to {high:,})"
        for name, low, high in level.beyond
    ]
    beyond = f"; of other sizes only: {', '.join(ends)}" if ends else ""
    return f"At {_size_words(level)}, along each method's own front: {', '.join(listed)}{beyond}."


def describe_method_at_size(found: MethodAtSize) -> str:
    """E.g. `shuffle 27.8 %`."""
    return f"{method_label(found.method)} {format_percent(found.error)}"


def _size_words(level: SizeLevel) -> str:
    return f"{level.size:,} {'parameters' if level.measure == 'params' else 'mult-adds'}"


def _answer(
    stratum: Stratum, points: Sequence[FrontPoint], images: int | None, asked: tuple[int, SizeMeasure] | None
) -> Answer:  # fmt: skip
    fitting = [point for point in points if stratum.holds(point)]
    chosen = best_point(fitting)
    level = size_level(points, fitting, asked) if asked else None
    return Answer(
        stratum=stratum,
        best=chosen,
        share=_share(stratum, points, chosen),
        candidates=sum(point.eligible for point in fitting),
        images=images,
        comparisons=tuple(_comparisons(chosen, points, fitting, images, level)) if chosen else (),
        level=level,
    )


def _share(stratum: Stratum, points: Sequence[FrontPoint], chosen: FrontPoint | None) -> float | None:
    if stratum.params is None:
        return chosen.ratio if chosen else None
    sizes = [point.params / point.ratio for point in points if point.ratio]
    return stratum.params / sizes[0] if sizes else None


def _comparisons(
    chosen: FrontPoint, points: Sequence[FrontPoint], fitting: Sequence[FrontPoint], images: int | None,
    level: SizeLevel | None,
) -> list[PointComparison]:  # fmt: skip
    """Against the next best method, references as small as the budget (thin networks), and the separable network."""
    seeds = errors_by_seed(points)
    found = []
    if level is not None:
        found += _compare_level(level, chosen.method, images)
    others: list[tuple[str, FrontPoint]] = []
    if not found:
        others += [(f"next best method, {point.name}", point) for point in best_by_method(fitting)[1:2]]
    whole = {id(find_reference(points, SEPARABLE)), id(find_reference(points, DENSE))}
    thin = [point for point in references(fitting) if id(point) not in whole]
    if thin:
        least = min(thin, key=lambda point: (point.error, point.params))
        others.append((f"{method_label(least.method)} within the same budget", least))
    separable = find_reference(points, SEPARABLE)
    if separable is not None:
        others.append(("separable reference", separable))
    return found + [_compare(chosen, label, other, images, seeds) for label, other in others]


def _compare(
    chosen: FrontPoint, label: str, other: FrontPoint, images: int | None, seeds: Mapping[str, ErrorsBySeed]
) -> PointComparison:  # fmt: skip
    pairs = paired_difference(seeds.get(chosen.setting, {}), seeds.get(other.setting, {}))
    return _judged(label, other, chosen.error, other.error, pairs, images)


def _compare_level(level: SizeLevel, method: str, images: int | None) -> list[PointComparison]:
    """`method` against the best other one at the same size; nothing where there is none."""
    rival = next((each for each in level.methods if each.method != method), None)
    own = next((each for each in level.methods if each.method == method), None)
    if own is None or rival is None:
        return []
    label = f"next best method at {_size_words(level)}"
    pairs = paired_difference(own.by_seed, rival.by_seed)
    return [replace(_judged(label, rival.nearest, own.error, rival.error, pairs, images), level=rival)]


def _judged(
    label: str, other: FrontPoint, mine: float, its: float, pairs: Estimate | None, images: int | None
) -> PointComparison:  # fmt: skip
    """The comparison of two errors; of those that share seeds the gap is that over the shared ones."""
    interval = newcombe_interval(mine, its, images) if images else None
    gap = pairs.mean if pairs else mine - its
    return PointComparison(label=label, other=other, gap=gap, interval=interval, over_seeds=pairs)
