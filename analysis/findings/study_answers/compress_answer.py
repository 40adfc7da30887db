"""What a study that begins with a trained network answers: how much smaller, at which loss, before and after training.

Every sentence compares with the trained network as it is, the reference `unchanged`. Errors are validation errors in
percent, differences points of error; negative is better. Where the records say which images were wrong, two networks
are compared on the same images. The best of several is corrected for the choice, and what is called better, worse or
within noise for the number of all comparisons (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.findings.study_answers.certainty import Evidence, chosen_difference, study_evidence
from analysis.stats import (
    ALARM_LEVEL,
    DENSE,
    SEPARABLE,
    UNCHANGED,
    ErrorsBySeed,
    Estimate,
    FrontPoint,
    Stratum,
    best_point,
    count_compared,
    errors_by_seed,
    find_reference,
    holm_p_values,
    image_p_value,
    newcombe_interval,
    paired_difference,
    pairing_sentence,
    study_strata,
    t_test_p_value,
)
from analysis.utils import format_percent, format_points, join_words, method_label
from lowrank.utils import format_counted
from sweeps.records import StudyRecord

SHARE_WORDS = {0.5: "half the parameters", 0.25: "a quarter", 0.2: "a fifth", 0.125: "an eighth", 0.1: "a tenth",
               0.05: "a twentieth"}  # fmt: skip
WORSENED = 1.0  # points of error by which a training ends above its start, from which the answer names it
SAME_SHARE = 0.02  # relative difference from a share in words, within which it is called so


@dataclass(frozen=True, kw_only=True)
class CompressedSize:
    """What was reached within one budget.

    Attributes:
        stratum: the budget.
        best: the best point; None if no trial that fits was completed.
        share: parameters of the best over those of the trained network.
        before: of the points within the budget, the one with the lowest error before any training; None where no
            trial started from trained weights.
        points: those that fit, from which the best was chosen.
    """

    stratum: Stratum
    best: FrontPoint | None
    share: float | None
    before: FrontPoint | None
    points: tuple[FrontPoint, ...]


def compressed_sizes(study: StudyRecord, points: Sequence[FrontPoint]) -> list[CompressedSize]:
    """Find the best smaller forms of the trained network that a study begins with.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        One for each budget, largest first; empty for a study without the reference `unchanged`.
    """
    base = find_reference(points, UNCHANGED)
    if base is None:
        return []
    sizes = []
    for stratum in reversed(study_strata(study) or [Stratum(label="any size", unlimited=True)]):
        fitting = [point for point in points if stratum.holds(point) and point.eligible]
        best = best_point(fitting)
        measured = [point for point in fitting if point.initial_error is not None]
        sizes.append(CompressedSize(
            stratum=stratum, best=best, share=best.params / base.params if best else None,
            before=min(measured, key=lambda point: (point.initial_error or 0.0, point.params), default=None),
            points=tuple(fitting),
        ))  # fmt: skip
    return sizes


def compress_paragraphs(
    study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence | None = None,
    others: Mapping[str, str] | None = None, other_comparisons: int = 0,
) -> list[str]:  # fmt: skip
    """Answer how much smaller a trained network can be.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        evidence: of the study; None to collect it here.
        others: label of a budget -> what the best within it is compared with beside the trained network, in sentences.
        other_comparisons: how many comparisons these hold.

    Returns:
        A paragraph on the trained network, which says whether differences are on the same images, then one for each
        budget, largest first, and one on trainings that did harm, if any did; empty for a study that does not begin
        with a trained network.

    Raises:
        InputError: a record of wrong images is damaged.
    """
    base = find_reference(points, UNCHANGED)
    if base is None:
        return []
    evidence = evidence or study_evidence(study)
    sizes = compressed_sizes(study, points)
    compared = _compare_all(base, points, sizes, evidence)
    shown = list(compared.values())
    pairing = pairing_sentence(sum(comparison.same_images for comparison in shown), len(shown))
    first = [_trained_paragraph(base, points, compared), pairing, _correction_sentence(shown, other_comparisons)]
    paragraphs = [*_first_sentence(base, points, sizes, compared), " ".join(part for part in first if part)]
    for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
        if size.best is not None and smaller is not None and smaller.best == size.best:
            text = f"{_capital(_share_words(size))}: {_smaller_is_best(size, smaller)}."
        else:
            text = _size_paragraph(size, base, compared)
        paragraphs.append(" ".join(filter(None, (text, (others or {}).get(size.stratum.label)))))
    return [*paragraphs, *_worsened_paragraph(points)]


def _first_sentence(
    base: FrontPoint, points: Sequence[FrontPoint], sizes: Sequence[CompressedSize], compared: _Compared
) -> list[str]:  # fmt: skip
    """How much smaller, at which loss after and before training; and what a thinner network from scratch has there."""
    clauses, thinner = [], []
    for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
        if size.best is None or (smaller is not None and smaller.best == size.best):
            continue  # the smaller budget says it
        comparison, words, method = compared[size.best.trial_id], _share_words(size), method_label(size.best.method)
        clause = f"{words} {comparison.mean:+.2f}{comparison.certainty(basis=False)} by {method}"
        if size.before is not None and size.before.initial_error is not None:
            clause += f", {size.before.initial_error - base.own_error:+.2f} before any training"
        clauses.append(clause)
        thin = [point for point in points if point.finished and point.is_thin and size.stratum.holds(point)]
        if thin:
            thinner.append(f"{format_percent(min(point.error for point in thin))} with at most {words}")
    if not clauses:
        return []
    trained = f"the trained network ({format_percent(base.error)} validation error)"
    scratch = f"; a thinner network from scratch has {join_words(thinner)}" if thinner else ""
    return [f"Against {trained}, in points: {'; '.join(clauses)}{scratch}."]


def _smaller_is_best(size: CompressedSize, smaller: CompressedSize) -> str:
    if all(point in smaller.points for point in size.points):
        return "no trial above the smaller budget was completed"
    return f"no network is better than that of the smaller budget, best of {len(size.points)}"


def _worsened_paragraph(points: Sequence[FrontPoint]) -> list[str]:
    """Say how many trainings did harm, if any did."""
    trained = [
        (point.own_error, point.initial_error, point)
        for point in points
        if point.finished and point.epochs and point.initial_error is not None
    ]
    worsened = [(after, before, point) for after, before, point in trained if after - before > WORSENED]
    if not worsened:
        return []
    after, before, worst = max(worsened, key=lambda row: row[0] - row[1])
    return [
        f"{len(worsened)} of {len(trained)} trainings ended more than {WORSENED:g} point above the error that they "
        f"began with, {method_label(worst.method)} at {worst.params:,} parameters by the most "
        f"({format_percent(before)} before, {format_percent(after)} after): a lower `train.lr` may mend that, "
        "or `train.optimizer: adamw` where there are no batch norms, or images as the network was trained on "
        "(`train.shift`, `train.flip`, `train.cutout`)."
    ]


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A network, or the best of several, minus the trained network as it is, in points.

    Attributes:
        mean: as measured.
        corrected: corrected for the choice; None where there was none, or the number of images is not known.
        ends: 95 % interval, of the corrected difference where there is one.
        basis: what the interval is over, in words.
        same_images: whether it is on the same images.
        p_value: of "no difference"; None without an interval.
        verdict: in words, after the correction for the number of comparisons.
    """

    mean: float
    corrected: float | None = None
    ends: tuple[float, float] | None = None
    basis: str = ""
    same_images: bool = False
    p_value: float | None = None
    verdict: str = ""

    def certainty(self, *, basis: bool = True) -> str:
        """Say how sure it is, in brackets.

        Args:
            basis: whether to say what the interval is over.

        Returns:
            E.g. ` (corrected for the choice +0.41, 95 % interval -0.90 to +1.30, same images, within noise)`; "" where
            nothing is known.
        """
        parts = []
        if self.corrected is not None:
            parts.append(f"corrected for the choice {format_points(self.corrected)}")
        if self.ends is not None:
            low, high = self.ends
            parts.append(f"95 % interval {format_points(low)} to {format_points(high)}")
        parts += [part for part in (self.basis * basis, self.verdict) if part]
        return f" ({', '.join(parts)})" if parts else ""


_Compared = Mapping[str, _Comparison]  # by the id of the trial


def _compare_all(
    base: FrontPoint, points: Sequence[FrontPoint], sizes: Sequence[CompressedSize], evidence: Evidence
) -> _Compared:  # fmt: skip
    """Every comparison with the trained network, corrected for their number; each by the id of the smaller one."""
    seeds = errors_by_seed(points)
    trained_on = [other for name in (DENSE, SEPARABLE) if (other := find_reference(points, name)) is not None]
    compared = {other.trial_id: _compare([other], base, evidence, seeds) for other in trained_on}
    for size in reversed(sizes):
        if size.best is not None and size.best.trial_id not in compared:  # else the best of a smaller budget too
            candidates = sorted(size.points, key=lambda point: point is not size.best)  # the best comes first
            compared[size.best.trial_id] = _compare(candidates, base, evidence, seeds)
    corrected = holm_p_values([comparison.p_value for comparison in compared.values()])
    return {
        key: replace(comparison, verdict=_verdict(p_value))
        for (key, comparison), p_value in zip(compared.items(), corrected, strict=True)
    }


def _verdict(corrected: float | None) -> str:
    if corrected is None:
        return ""
    return "beyond noise" if corrected <= ALARM_LEVEL else "within noise"


def _correction_sentence(shown: Sequence[_Comparison], other_comparisons: int) -> str:
    number = count_compared([comparison.p_value for comparison in shown])
    corrections = ["the choice of the best"] * any(comparison.corrected is not None for comparison in shown)
    if other_comparisons and number:
        corrections.append(
            f"the number of comparisons (Holm), {number} with the trained network and {other_comparisons} with others"
        )
    elif number > 1:
        corrections.append(f"the number of comparisons in this part, {number} (Holm)")
    return f"“Within noise” and “beyond noise” are corrected for {' and '.join(corrections)}." if corrections else ""


def _compare(
    candidates: Sequence[FrontPoint], base: FrontPoint, evidence: Evidence, seeds: Mapping[str, ErrorsBySeed]
) -> _Comparison:  # fmt: skip
    """The first of the candidates, which is the best of them, minus the trained network as it is.

    That network has one error, whatever the seed.
    """
    best = candidates[0]
    ours = seeds.get(best.setting, {})
    over_seeds = paired_difference(ours, dict.fromkeys(ours, base.own_error))
    mean = best.error - base.error if over_seeds is None else over_seeds.mean
    if len(candidates) == 1 and not _on_same_images(best, base, evidence):
        return _compare_two(mean, over_seeds, best, base, evidence)
    difference = chosen_difference(candidates, [base], evidence)
    if difference is None:
        return _compare_two(mean, over_seeds, best, base, evidence)
    selected = difference.selected
    p_values = [selected.p_value]
    if over_seeds is not None and not difference.same_images:  # neither the seeds nor the images may explain it
        p_values.append(t_test_p_value(over_seeds))
    basis = "same images" if difference.same_images else ""
    return _Comparison(
        mean=mean, corrected=selected.mean if len(candidates) > 1 else None, ends=(selected.low, selected.high),
        basis=f"{basis}, {difference.seeds} seeds" if basis and difference.seeds > 1 else basis,
        same_images=difference.same_images, p_value=max(p_values),
    )  # fmt: skip


def _on_same_images(first: FrontPoint, second: FrontPoint, evidence: Evidence) -> bool:
    return bool(evidence.wrong.get(first.setting)) and bool(evidence.wrong.get(second.setting))


def _compare_two(
    mean: float, over_seeds: Estimate | None, first: FrontPoint, second: FrontPoint, evidence: Evidence
) -> _Comparison:  # fmt: skip
    """Two networks that nobody chose and that are not paired by image: over seeds, else as two samples of images."""
    if over_seeds is not None and over_seeds.low is not None and over_seeds.high is not None:
        return _Comparison(
            mean=mean, ends=(over_seeds.low, over_seeds.high), basis=f"over {over_seeds.count} seeds",
            p_value=t_test_p_value(over_seeds),
        )  # fmt: skip
    if evidence.images is None:
        return _Comparison(mean=mean)
    return _Comparison(
        mean=mean, ends=newcombe_interval(first.error, second.error, evidence.images),
        p_value=image_p_value(first.error, second.error, evidence.images),
    )  # fmt: skip


def _trained_paragraph(base: FrontPoint, points: Sequence[FrontPoint], compared: _Compared) -> str:
    text = (
        f"The trained network as it is: {format_percent(base.error)} at {base.params:,} parameters{epochs_words(base)}."
    )
    for name, verb in ((DENSE, "Trained further"), (SEPARABLE, "Separable, begun at it and trained further")):
        other = find_reference(points, name)
        if other is not None:
            size = "" if other.params == base.params else f" at {other.params:,} parameters"
            text += f" {verb}{epochs_words(other)}: {_gap(other, compared)}{size}."
    return text


def _size_paragraph(size: CompressedSize, base: FrontPoint, compared: _Compared) -> str:
    best = size.best
    if best is None or size.share is None:
        return f"{_capital(size.stratum.label)}: no trial was completed."
    choice = f", best of {len(size.points)}" * (len(size.points) > 1)
    text = (
        f"{_capital(_share_words(size))} ({best.params:,}) at {_gap(best, compared)}: {best.name}{epochs_words(best)}, "
        f"{format_percent(best.error)}{choice}."
    )
    if size.before is not None and size.before.initial_error is not None:
        gap = size.before.initial_error - base.own_error
        text += f" Before any training the lowest is {gap:+.2f} points, as measured: {size.before.untrained_name}."
    return text


def _share_words(size: CompressedSize) -> str:
    """The budget in words where it has some, such as `half the parameters`, else the share of the best network."""
    _, sign, limit = size.stratum.label.partition("params <= ")
    share = float(limit.split()[0]) if sign and limit.endswith(" of dense") else size.share
    assert share is not None
    for named_share, words in SHARE_WORDS.items():
        if abs(share / named_share - 1) <= SAME_SHARE:
            return words
    return f"{100 * share:.3g} % of the parameters"


def _gap(point: FrontPoint, compared: _Compared) -> str:
    """E.g. `+0.20 points (95 % interval -0.90 to +1.30, same images, within noise)`."""
    comparison = compared[point.trial_id]
    return f"{comparison.mean:+.2f} points{comparison.certainty()}"


def epochs_words(point: FrontPoint) -> str:
    """Say how long a network was trained; the epochs of the trained network that it starts from count in all.

    Args:
        point: of a study.

    Returns:
        E.g. ` (3 epochs, 23 in all)`.
    """
    epochs = format_counted(point.epochs, "epoch")
    if point.method == UNCHANGED:
        return "" if point.total_epochs is None else f" ({format_counted(point.total_epochs, 'epoch')})"
    if point.start == "scratch":
        return f" ({epochs} in all)"
    return f" ({epochs})" if point.total_epochs is None else f" ({epochs}, {point.total_epochs} in all)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
