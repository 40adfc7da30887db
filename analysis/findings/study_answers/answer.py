"""The study's answer in words, with the noise of few validation images stated beside every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.findings.study_answers.certainty import (
    ChosenDifference,
    Evidence,
    chosen_difference,
    compare_points,
    describe_equivalence,
    equivalence,
    selected_error,
    study_evidence,
)
from analysis.findings.study_answers.compress_answer import compress_paragraphs, epochs_words
from analysis.findings.study_answers.undecided import undecided_sentence
from analysis.stats import (
    ALARM_LEVEL,
    DENSE,
    SEPARABLE,
    UNCHANGED,
    ErrorsBySeed,
    Estimate,
    FrontPoint,
    MethodAtSize,
    SelectedError,
    ShareBase,
    SizeLevel,
    SizeMeasure,
    Stratum,
    best_by_method,
    best_point,
    count_compared,
    errors_by_seed,
    find_reference,
    holm_p_values,
    image_p_value,
    paired_difference,
    pareto_front,
    references,
    share_base,
    size_level,
    size_limit,
    split_common_extras,
    study_strata,
    t_test_p_value,
)
from analysis.utils import format_percent, format_points, method_label
from lowrank.utils import format_counted
from sweeps.records import StudyRecord

NEXT_BEST = "next best method"


@dataclass(frozen=True, kw_only=True)
class PointComparison:
    """The best point against another one.

    Attributes:
        label: what the other one is, in words; `NEXT_BEST` is followed by its name.
        other: the other point.
        gap: best minus other in points of error, as measured: negative is better.
        seeds: over how many seeds of both `gap` is; None where it is the difference of the two errors shown.
        chosen: the difference corrected for the choice; None where the number of images is not known, or where errors
            are interpolated.
        over_seeds: mean difference over the seeds of both, with its interval; None with fewer than two.
        p_value: of "no difference"; None where nothing gives one.
        corrected: the same, corrected for all comparisons of the answer.
        comparisons: how many these are.
        level: the other method at the size that the two are compared at, where it has another size.
        epochs: for how long the other one was trained, in words; "" where that is as long as the best.
    """

    label: str
    other: FrontPoint
    gap: float
    seeds: int | None = None
    chosen: ChosenDifference | None = None
    over_seeds: Estimate | None = None
    p_value: float | None = None
    corrected: float | None = None
    comparisons: int = 1
    level: MethodAtSize | None = None
    epochs: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether chance may explain it, after all corrections; None where that is not known."""
        return None if self.corrected is None else self.corrected > ALARM_LEVEL

    @property
    def has_choice(self) -> bool:
        """Whether the best was chosen among several points, and the difference pays for that."""
        return self.chosen is not None and self.chosen.candidates > 1

    @property
    def shared_seeds(self) -> str:
        """Over which seeds the gap is, in words; "" where it is the difference of the two errors shown."""
        return "" if self.seeds is None else f"over the {format_counted(self.seeds, 'seed')} of both"

    def text(self) -> str:
        """Return one clause, e.g. `separable reference: 1.9 % at 755,000, 0.2 points lower (within noise)`."""
        side = "lower" if self.gap > 0 else "higher"
        where = "the same error" if self.gap == 0 else f"{abs(self.gap):.2f} points {side}"
        where += f" ({', '.join(self._certainty())})"
        if self.level is not None:
            return f"{self.label}: {describe_method_at_size(self.level)}, {where}"
        label = f"{self.label}, {self.other.name}" if self.label == NEXT_BEST else self.label
        return f"{label}: {format_percent(self.other.error)} at {self.other.params:,}{self.epochs}, {where}"

    def _certainty(self) -> list[str]:
        """Over which seeds, the interval, and whether it is beyond noise; signs are those of the clause."""
        sign = 1 if self.gap > 0 else -1
        parts = []
        if self.shared_seeds:
            parts.append(self.shared_seeds)
        if self.chosen is not None:
            selected = self.chosen.selected
            low, high = sorted((sign * selected.low, sign * selected.high))
            corrected = f"corrected for the choice {format_points(sign * selected.mean)}, " * self.has_choice
            parts.append(f"{corrected}95 % interval {format_points(low)} to {format_points(high)}")
        elif self.over_seeds is not None and self.over_seeds.low is not None and self.over_seeds.high is not None:
            low, high = sorted((sign * self.over_seeds.low, sign * self.over_seeds.high))
            parts.append(
                f"95 % interval {format_points(low)} to {format_points(high)} over {self.over_seeds.count} seeds"
            )
        if self.level is not None:
            parts.append("not corrected for the choice")
        return [*parts, {True: "within noise", False: "beyond noise", None: "noise unknown"}[self.within_noise]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is best within one budget.

    Attributes:
        stratum: the budget.
        best: the best point; None if no trial that fits was completed.
        share: the budget (without one, the best point's parameters) over the parameters of the network `share_base`.
        candidates: how many completed trials fit.
        images: on which errors were measured; None if that is not known.
        selected: the error of the best, corrected for the choice; None if the number of images is not known.
        same_images: whether the records say which images were wrong.
        comparisons: of the best point with others.
        level: the methods at one size, where their sizes within the budget differ.
        share_base: the network that the budget is relative to.
    """

    stratum: Stratum
    best: FrontPoint | None
    share: float | None
    candidates: int
    images: int | None
    selected: SelectedError | None = None
    same_images: bool = False
    comparisons: tuple[PointComparison, ...] = ()
    level: SizeLevel | None = None
    share_base: ShareBase = "separable"

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the best point's validation error in percent, corrected for the choice."""
        if self.selected is None or self.best is None:
            return None
        return self.selected.around(self.best.error)

    @property
    def corrected(self) -> float | None:
        """The best point's validation error in percent, corrected for the choice."""
        return self.selected.mean if self.selected else None

    @property
    def next_best(self) -> PointComparison | None:
        """The comparison of the best with the next best method; None where there is none."""
        return next((rival for rival in self.comparisons if rival.label.startswith(NEXT_BEST)), None)

    def text(self, smaller: Answer | None = None) -> str:
        """Return the answer as one to three sentences.

        Args:
            smaller: the answer to the next smaller budget, if there is one.

        Returns:
            The sentences.
        """
        if self.best is None:
            return f"{self._where()}: no trial was completed."
        share = "" if self.stratum.params else self._share()
        size = f"{self.best.params:,} parameters{share}"
        sentence = f"{self._where()}: {self.best.name}, {size}: {format_percent(self.best.error)}"
        if smaller is not None and smaller.best == self.best:
            same = f"{sentence}, as within the smaller budget (best of {self.candidates} completed)."
            return f"{same} {describe_size_level(self.level)}" if self.level and self.level != smaller.level else same
        sentence += " validation error"
        return " ".join(filter(None, (f"{sentence} ({self._certainty()}).", self.others_text())))

    def others_text(self) -> str:
        """Return what the best is compared with, and the methods at one size, in sentences; "" without any."""
        sentences = []
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
        return f" ({100 * self.share:.3g} % of {self.share_base})" if self.share is not None else ""

    def _certainty(self) -> str:
        assert self.best is not None
        parts = [f"n = {format_counted(self.best.seeds, 'seed')}"]
        if self.best.lost:
            parts.append(self.best.lost)
        if self.best.spread is not None:
            parts.append(f"standard deviation {self.best.spread:.2f} points")
        if self.interval is not None and self.corrected is not None:
            low, high = self.interval
            basis = "" if self.same_images else ", from counts alone"
            corrected = f"corrected for the choice {format_percent(self.corrected)}, " * (self.candidates > 1)
            parts.append(
                f"{self.images:,} validation images; {corrected}95 % interval {low:.1f} to {high:.1f} %{basis}"
            )
        parts.append(f"best of {self.candidates} completed" if self.candidates > 1 else "the only one completed")
        return ", ".join(parts)


def answers(study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence | None = None) -> list[Answer]:
    """Answer a study's question within each of its budgets.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        evidence: of the study; None to collect it here.

    Returns:
        One answer a budget, smallest first; a study without budgets has one, for any size.
    """
    evidence = evidence or study_evidence(study)
    budgets = study_strata(study) or [Stratum(label="any size", unlimited=True)]
    base = share_base(study)
    answered = [_answer(stratum, points, evidence, size_limit(stratum, study), base) for stratum in budgets]
    return _correct_for_number(answered)


def _correct_for_number(answered: Sequence[Answer]) -> list[Answer]:
    """Correct the p-values for all comparisons; a budget with the same best as a smaller one shows none of its own."""
    shown = [
        answer for smaller, answer in zip([None, *answered], answered, strict=False)
        if smaller is None or smaller.best != answer.best
    ]  # fmt: skip
    corrected = holm_p_values([comparison.p_value for answer in shown for comparison in answer.comparisons])
    count, values = count_compared(corrected), iter(corrected)
    judged = {
        id(answer): tuple(replace(c, corrected=next(values), comparisons=count) for c in answer.comparisons)
        for answer in shown
    }
    return [replace(answer, comparisons=judged.get(id(answer), ())) for answer in answered]


def comparisons_sentence(answered: Sequence[Answer]) -> str:
    """Say what the verdicts of an answer's comparisons are corrected for.

    Args:
        answered: of `answers`.

    Returns:
        One sentence; "" where nothing is compared.
    """
    comparisons = [comparison for answer in answered for comparison in answer.comparisons]
    number = max((comparison.comparisons for comparison in comparisons if comparison.p_value is not None), default=0)
    corrections = ["the choice of the best"] * any(comparison.has_choice for comparison in comparisons)
    corrections += [f"the number of these comparisons, {number} (Holm)"] * (number > 1)
    return f"“Within noise” and “beyond noise” are corrected for {' and '.join(corrections)}." * bool(corrections)


def answer_text(study: StudyRecord, points: Sequence[FrontPoint]) -> str:
    """Return the whole answer in words.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        A paragraph a budget, then what was not tried, what the references reached and what the front is.
    """
    evidence = study_evidence(study)
    points, common = split_common_extras(points)
    answered = answers(study, points, evidence)
    compressed = compress_answer(study, points, answered, evidence)
    tried = {trial.stratum for trial in study.trials.values()}
    untried = [answer for answer in answered if answer.best is None and answer.stratum.label not in tried]
    untried = untried if 1 < len(untried) < len(answered) else []
    texts = [(answer, answer.text(smaller)) for smaller, answer in zip([None, *answered], answered, strict=False)]
    texts.sort(key=lambda entry: entry[0].best is None)  # what was reached comes first
    paragraphs = compressed or [text for answer, text in texts if answer not in untried]
    paragraphs += [sentence] if not compressed and (sentence := comparisons_sentence(answered)) else []
    if common:
        paragraphs.insert(1 if compressed else len(paragraphs), common_sentence(common))
    if untried:
        reason = untried[-1].stratum.unreachable  # the largest budget; the smaller ones cannot be met either
        cause = f", for no method can meet it: {reason}" if reason else ""
        labels = "; ".join(answer.stratum.label for answer in untried)
        paragraphs.append(f"Nothing was tried in {len(untried)} strata: {labels}{cause}.")
    reached = [
        f"{method_label(p.method)} {format_percent(p.error)} at {p.params:,} parameters" for p in references(points)
    ]
    paragraphs.append(
        f"References: {'; '.join(reached)}." if reached else "No reference network was trained to its end."
    )
    on_front = pareto_front(points)
    if on_front:
        ends = dict.fromkeys(f"{point.params:,}" for point in (on_front[0], on_front[-1]))
        paragraphs.append(
            f"The front has {format_counted(len(on_front), 'point')}, of {' to '.join(ends)} parameters; only "
            "trials trained to their end are on it, and all errors here are on validation images."
        )
        paragraphs += [sentence] if (sentence := undecided_sentence(study, points, evidence)) else []
    return "\n".join(paragraphs)


def compress_answer(
    study: StudyRecord, points: Sequence[FrontPoint], answered: Sequence[Answer], evidence: Evidence
) -> list[str]:  # fmt: skip
    """Answer how much smaller a trained network can be, and than what it is better.

    Args:
        study: the records.
        points: of all its trials.
        answered: of `answers`.
        evidence: of the study.

    Returns:
        As `compress_paragraphs`: empty for a study that does not begin with a trained network.
    """
    others = {answer.stratum.label: answer.others_text() for answer in answered}
    p_values = [comparison.p_value for answer in answered for comparison in answer.comparisons]
    paragraphs = compress_paragraphs(study, points, evidence, others, count_compared(p_values))
    base = find_reference(points, UNCHANGED)
    verdict = equivalence(points, base, evidence) if base is not None else None
    if base is not None and verdict is not None:
        trained = f"the trained network ({format_percent(base.error)} at {base.params:,} parameters)"
        paragraphs.insert(1, describe_equivalence(verdict, trained, base, evidence))
    return paragraphs


def common_sentence(common: Sequence[str]) -> str:
    """Say what names leave out because all searched settings have it.

    Args:
        common: of `split_common_extras`.

    Returns:
        One sentence.
    """
    return f"All searched networks have in common: {', '.join(common)}."


def describe_size_level(level: SizeLevel, *, brief: bool = False) -> str:
    """Return the methods at equal size in one sentence.

    Args:
        level: the methods.
        brief: whether to leave out what was interpolated.

    Returns:
        The sentence.
    """
    methods = []
    for method in level.methods:
        ends = [f"{point.size(level.measure):,}" for point in (method.below, method.above)]
        how = f" (interpolated, {' to '.join(ends)})" if method.between and not brief else ""
        methods.append(f"{describe_method_at_size(method)}{how}")
    ends = [
        f"{method_label(name)} ({low:,})" if low == high else f"{method_label(name)} ({low:,} to {high:,})"
        for name, low, high in level.beyond
    ]
    beyond = f"; of other sizes only: {', '.join(ends)}" if ends else ""
    return f"At {_size_words(level)}, along each method's own front: {', '.join(methods)}{beyond}."


def describe_method_at_size(method: MethodAtSize) -> str:
    """Return a method and its error in words.

    Args:
        method: at one size.

    Returns:
        E.g. `shuffle 27.8 %`.
    """
    return f"{method_label(method.method)} {format_percent(method.error)}"


def _size_words(level: SizeLevel) -> str:
    return f"{level.size:,} {'parameters' if level.measure == 'params' else 'mult-adds'}"


def _answer(
    stratum: Stratum, points: Sequence[FrontPoint], evidence: Evidence, limit: tuple[int, SizeMeasure] | None,
    base: ShareBase,
) -> Answer:  # fmt: skip
    fitting = [point for point in points if stratum.holds(point)]
    chosen = best_point(fitting)
    level = size_level(points, fitting, limit) if limit else None
    return Answer(
        stratum=stratum,
        best=chosen,
        share=_share(stratum, points, chosen, base),
        share_base=base,
        candidates=sum(point.eligible for point in fitting),
        images=evidence.images,
        selected=selected_error(fitting, evidence),
        same_images=chosen is not None and bool(evidence.wrong.get(chosen.setting)),
        comparisons=tuple(_comparisons(chosen, points, fitting, evidence, level)) if chosen else (),
        level=level,
    )


def _share(
    stratum: Stratum, points: Sequence[FrontPoint], chosen: FrontPoint | None, base: ShareBase
) -> float | None:  # fmt: skip
    if stratum.params is None:
        return chosen.share_of(base) if chosen else None
    sizes = [point.params / share for point in points if (share := point.share_of(base))]
    return stratum.params / sizes[0] if sizes else None


def _comparisons(
    chosen: FrontPoint, points: Sequence[FrontPoint], fitting: Sequence[FrontPoint], evidence: Evidence,
    level: SizeLevel | None,
) -> list[PointComparison]:  # fmt: skip
    """Against the next best method, references as small as the budget (thin networks), and the separable network."""
    seeds = errors_by_seed(points)
    comparisons = []
    if level is not None:
        comparisons += _compare_level(level, chosen.method, evidence.images)
    if not comparisons:
        for point in best_by_method(fitting)[1:2]:
            ours = [other for other in fitting if other.method == chosen.method]
            theirs = [other for other in fitting if other.method == point.method and other.eligible and other.competes]
            comparisons.append(_compare(chosen, NEXT_BEST, point, evidence, seeds, ours, theirs or [point]))
    full_width = {id(find_reference(points, name)) for name in (SEPARABLE, DENSE, UNCHANGED)}
    thin = [point for point in references(fitting) if id(point) not in full_width]
    if thin:
        least = min(thin, key=lambda point: (point.error, point.params))
        label = f"{method_label(least.method)} within the same budget"
        comparisons.append(_compare(chosen, label, least, evidence, seeds, fitting, thin))
    separable = find_reference(points, SEPARABLE)
    if separable is not None and find_reference(points, UNCHANGED) is None:  # that is compared with the trained network
        label = "separable reference"
        comparisons.append(_compare(chosen, label, separable, evidence, seeds, fitting, [separable]))
    return comparisons


def _compare(
    chosen: FrontPoint, label: str, other: FrontPoint, evidence: Evidence, seeds: Mapping[str, ErrorsBySeed],
    points: Sequence[FrontPoint], others: Sequence[FrontPoint],
) -> PointComparison:  # fmt: skip
    """The comparison of the best of `points` with the best of `others`; the gap is over the seeds of both."""
    count: int | None
    paired = compare_points(chosen, other, evidence)
    if paired is not None:
        gap, count, over_seeds = paired.mean, paired.seeds, paired.estimate if paired.seeds > 1 else None
    else:
        over_seeds = paired_difference(seeds.get(chosen.setting, {}), seeds.get(other.setting, {}))
        gap = over_seeds.mean if over_seeds else chosen.error - other.error
        count = over_seeds.count if over_seeds else None
    if count == chosen.seeds == other.seeds:
        count = None
    difference = chosen_difference(points, others, evidence)
    p_values = [difference.selected.p_value] if difference else []
    if over_seeds is not None and paired is None:  # neither the seeds nor the images may explain it
        p_values.append(t_test_p_value(over_seeds))
    return PointComparison(
        label=label, other=other, gap=gap, seeds=count, chosen=difference, over_seeds=over_seeds,
        p_value=max(p_values, default=None),
        epochs=epochs_words(other) if other.total_epochs != chosen.total_epochs else "",
    )  # fmt: skip


def _compare_level(level: SizeLevel, chosen_method: str, images: int | None) -> list[PointComparison]:
    """`method` against the best other one at the same size; nothing where there is none.

    Interpolated errors have no images of their own: their seeds and their number of images judge them, and the choice
    of the points on each front is not paid for.
    """
    rival = next((method for method in level.methods if method.method != chosen_method), None)
    chosen = next((method for method in level.methods if method.method == chosen_method), None)
    if chosen is None or rival is None:
        return []
    over_seeds = paired_difference(chosen.by_seed, rival.by_seed)
    p_values = [] if over_seeds is None else [t_test_p_value(over_seeds)]
    p_values += [] if images is None else [image_p_value(chosen.error, rival.error, images)]
    gap = over_seeds.mean if over_seeds else chosen.error - rival.error
    return [PointComparison(
        label=f"{NEXT_BEST} at {_size_words(level)}", other=rival.nearest, gap=gap, over_seeds=over_seeds,
        p_value=max(p_values, default=None), level=rival,
    )]  # fmt: skip
