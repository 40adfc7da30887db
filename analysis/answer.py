"""The study's answer in words, with the noise of few validation images stated beside every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.front import (
    DENSE,
    SEPARABLE,
    FrontPoint,
    Stratum,
    best,
    best_by_method,
    collect,
    front,
    method_label,
    reference,
    references,
    strata,
    validation_images,
)
from analysis.noise import difference, wilson
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best point against another one; `gap` is best minus other in points of error, so negative is better."""

    label: str
    other: FrontPoint
    gap: float
    interval: tuple[float, float] | None  # 95 %, None when the number of images is not known

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval of the gap holds 0; None when it is not known."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]

    def text(self) -> str:
        """One clause, e.g. `separable reference: 1.9 % at 755,000, 0.2 points lower (within noise)`."""
        verdict = {True: "within noise", False: "beyond noise", None: "noise unknown"}[self.within_noise]
        side = "lower" if self.gap > 0 else "higher"
        where = "the same" if self.gap == 0 else f"{abs(self.gap):.2f} points {side} ({verdict})"
        return f"{self.label}: {percent(self.other.error)} at {self.other.params:,}, {where}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is best within one budget, how sure that is, and what it is measured against."""

    stratum: Stratum
    best: FrontPoint | None
    share: float | None  # the budget (or, without one, the best point's parameters) over the separable network's
    candidates: int  # completed trials that fit
    images: int | None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the best point's validation error, in percent."""
        return wilson(self.best.error, self.images) if self.best and self.images else None

    def text(self, smaller: Answer | None = None) -> str:
        """The answer as one to three sentences; `smaller` is the answer to the next smaller budget, if there is one."""
        if self.best is None:
            return f"{self._where()}: no trial was completed."
        found = f"{self._where()}: {self.best.name}, {self.best.params:,} parameters: {percent(self.best.error)}"
        if smaller is not None and smaller.best == self.best:
            return f"{found}, as within the smaller budget (best of {self.candidates} completed)."
        found += " validation error"
        sentences = [f"{found} ({self._certainty()})."]
        if self.comparisons:
            clauses = "; ".join(comparison.text() for comparison in self.comparisons)
            sentences.append(f"{clauses[0].upper()}{clauses[1:]}.")
        return " ".join(sentences)

    def _where(self) -> str:
        share = f" ({100 * self.share:.3g} % of separable)" if self.share is not None else ""
        if self.stratum.params:
            return f"At up to {self.stratum.params:,} parameters{share}"
        label = self.stratum.label or "any size"
        return f"{label[0].upper()}{label[1:]}{share}"

    def _certainty(self) -> str:
        assert self.best is not None
        parts = [f"n = {self.best.seeds} seed{'s' * (self.best.seeds != 1)}"]
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


def answers(study: StudyRecord) -> list[Answer]:
    """One answer a budget, smallest first; a study without budgets has one answer, for any size."""
    points, images = collect(study), validation_images(study)
    budgets = strata(study) or [Stratum(label="any size", unlimited=True)]
    return [_answer(stratum, points, images) for stratum in budgets]


def answer_text(study: StudyRecord) -> str:
    """The whole answer: a paragraph a budget, and what the references reached."""
    points = collect(study)
    found = answers(study)
    paragraphs = [answer.text(smaller) for smaller, answer in zip([None, *found], found, strict=False)]
    known = [f"{method_label(p.method)} {percent(p.error)} at {p.params:,} parameters" for p in references(points)]
    paragraphs.append(f"References: {'; '.join(known)}." if known else "No reference network was trained to its end.")
    kept = front(points)
    if kept:
        plural = "s" * (len(kept) != 1)
        paragraphs.append(
            f"The front has {len(kept)} point{plural}, of {kept[0].params:,} to {kept[-1].params:,} parameters; only "
            "trials trained to their end are on it, and all errors here are on validation images."
        )
    return "\n".join(paragraphs)


def percent(error: float) -> str:
    """An error for readers, e.g. `2.08 %`: two decimals below 10, one above."""
    return f"{error:.2f} %" if error < 10 else f"{error:.1f} %"


def _answer(stratum: Stratum, points: Sequence[FrontPoint], images: int | None) -> Answer:
    fitting = [point for point in points if stratum.holds(point)]
    chosen = best(fitting)
    return Answer(
        stratum=stratum,
        best=chosen,
        share=_share(stratum, points, chosen),
        candidates=sum(point.eligible for point in fitting),
        images=images,
        comparisons=tuple(_comparisons(chosen, points, fitting, images)) if chosen else (),
    )


def _share(stratum: Stratum, points: Sequence[FrontPoint], chosen: FrontPoint | None) -> float | None:
    if stratum.params is None:
        return chosen.ratio if chosen else None
    sizes = [point.params / point.ratio for point in points if point.ratio]
    return stratum.params / sizes[0] if sizes else None


def _comparisons(
    chosen: FrontPoint, points: Sequence[FrontPoint], fitting: Sequence[FrontPoint], images: int | None
) -> list[Comparison]:
    """Against the next best method, references as small as the budget (thin networks), and the separable network."""
    others: list[tuple[str, FrontPoint]] = []
    others += [(f"next best method, {point.name}", point) for point in best_by_method(fitting)[1:2]]
    whole = {id(reference(points, SEPARABLE)), id(reference(points, DENSE))}
    thin = [point for point in references(fitting) if id(point) not in whole]
    if thin:
        found = min(thin, key=lambda point: (point.error, point.params))
        others.append((f"{method_label(found.method)} within the same budget", found))
    separable = reference(points, SEPARABLE)
    if separable is not None:
        others.append(("separable reference", separable))
    return [_compare(chosen, label, other, images) for label, other in others]


def _compare(chosen: FrontPoint, label: str, other: FrontPoint, images: int | None) -> Comparison:
    interval = difference(chosen.error, other.error, images) if images else None
    return Comparison(label=label, other=other, gap=chosen.error - other.error, interval=interval)
