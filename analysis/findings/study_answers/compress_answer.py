"""What a study that begins with a trained network answers: how much smaller, at which loss, before and after training.

Every sentence compares with the trained network as it is, the reference `unchanged`. Errors are validation errors in
percent, differences points of error; negative is better. Where the records say which images were wrong, two networks
are compared on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.findings.study_answers.certainty import Evidence, study_evidence
from analysis.stats import (
    DENSE,
    SEPARABLE,
    UNCHANGED,
    ErrorsBySeed,
    FrontPoint,
    PairedDifference,
    Stratum,
    best_point,
    errors_by_seed,
    find_reference,
    newcombe_interval,
    paired_difference,
    pairing_sentence,
    references,
    same_images_difference,
    study_strata,
)
from analysis.utils import format_percent, format_points, method_label
from sweeps.records import StudyRecord

SHARE_WORDS = {0.5: "half the parameters", 0.25: "a quarter", 0.2: "a fifth", 0.125: "an eighth", 0.1: "a tenth",
               0.05: "a twentieth"}  # fmt: skip
SAME_ERROR = 0.005  # points, which round to 0.00
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
        from_scratch: the best network within the budget that started from random weights; None without one.
        candidates: how many points fit.
    """

    stratum: Stratum
    best: FrontPoint | None
    share: float | None
    before: FrontPoint | None
    from_scratch: FrontPoint | None
    candidates: int


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
        of_size = [point for point in points if point.stratum == stratum.label and point.eligible]
        best = best_point(of_size)
        measured = [point for point in of_size if point.initial_error is not None]
        limit = stratum.params or (best.params if best else 0)
        scratch = [point for point in references(points) if point.start == "scratch" and point.params <= limit]
        sizes.append(CompressedSize(
            stratum=stratum, best=best, share=best.params / base.params if best else None,
            before=min(measured, key=lambda point: (point.initial_error or 0.0, point.params), default=None),
            from_scratch=min(scratch, key=lambda point: (point.error, point.params), default=None),
            candidates=len(of_size),
        ))  # fmt: skip
    return sizes


def compress_paragraphs(
    study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence | None = None
) -> list[str]:  # fmt: skip
    """Answer how much smaller a trained network can be.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        evidence: of the study; None to collect it here.

    Returns:
        A paragraph on the trained network, which says whether differences are on the same images, then one for each
        budget, largest first; empty for a study that does not begin with a trained network.

    Raises:
        InputError: a record of wrong images is damaged.
    """
    base = find_reference(points, UNCHANGED)
    if base is None:
        return []
    differences = _Differences(evidence or study_evidence(study), errors_by_seed(points))
    first = _trained_paragraph(base, points, differences)
    paragraphs = [_size_paragraph(size, base, differences) for size in compressed_sizes(study, points)]
    pairing = pairing_sentence(sum(differences.same_images), len(differences.same_images))
    return [" ".join(part for part in (first, pairing) if part), *paragraphs]


@dataclass(frozen=True)
class _Difference:
    """The difference of two errors in points, with its 95 % interval where there is one."""

    mean: float
    ends: tuple[float, float] | None = None
    basis: str = ""

    def reversed(self) -> _Difference:
        return _Difference(-self.mean, None if self.ends is None else (-self.ends[1], -self.ends[0]), self.basis)

    @property
    def interval(self) -> str:
        """E.g. ` (95 % interval -0.90 to +1.30, same images)`; "" without one."""
        if self.ends is None:
            return ""
        low, high = (format_points(end) for end in self.ends)
        return f" (95 % interval {', '.join([f'{low} to {high}', *[self.basis] * bool(self.basis)])})"


class _Differences:
    """Computes the differences of a study, and remembers which of them are on the same images."""

    def __init__(self, evidence: Evidence, seeds: Mapping[str, ErrorsBySeed]) -> None:
        self.evidence = evidence
        self.seeds = seeds
        self.same_images: list[bool] = []

    def between(self, point: FrontPoint, other: FrontPoint) -> _Difference:
        """Point minus other; the trained network as it is has one error, whatever the seed."""
        paired = self._on_same_images(point, other)
        self.same_images.append(paired is not None)
        if paired is not None:
            basis = f"same images, {paired.seeds} seeds" if paired.seeds > 1 else "same images"
            return _Difference(paired.mean, (paired.low, paired.high), basis)
        ours, theirs = self.seeds.get(point.setting, {}), self.seeds.get(other.setting, {})
        if other.method == UNCHANGED:
            theirs = dict.fromkeys(ours, other.own_error)
        estimate = paired_difference(ours, theirs)
        if estimate is not None and estimate.low is not None and estimate.high is not None:
            return _Difference(estimate.mean, (estimate.low, estimate.high), f"over {estimate.count} seeds")
        images = self.evidence.images
        ends = None if images is None else newcombe_interval(point.error, other.error, images)
        return _Difference(point.error - other.error, ends)

    def _on_same_images(self, point: FrontPoint, other: FrontPoint) -> PairedDifference | None:
        wrong, between_seeds = self.evidence.wrong, self.evidence.seeds
        ours, theirs = wrong.get(point.setting, {}), wrong.get(other.setting, {})
        if other.method == UNCHANGED and theirs:
            theirs = dict.fromkeys(ours, next(iter(theirs.values())))
            if between_seeds is not None:  # only one of the two moves with the seed
                beyond = max(0.0, between_seeds.variance - between_seeds.interaction)
                between_seeds = replace(between_seeds, variance=between_seeds.interaction + beyond / 2)
        return same_images_difference(ours, theirs, between_seeds)


def _trained_paragraph(base: FrontPoint, points: Sequence[FrontPoint], differences: _Differences) -> str:
    text = f"The trained network as it is: {format_percent(base.error)} at {base.params:,} parameters{_epochs(base)}."
    for name, verb in ((DENSE, "Trained on"), (SEPARABLE, "Separable, started from it and trained on")):
        other = find_reference(points, name)
        if other is not None:
            size = "" if other.params == base.params else f" at {other.params:,} parameters"
            text += f" {verb}{_epochs(other)}: {_gap(other, base, differences)}{size}."
    return text


def _size_paragraph(size: CompressedSize, base: FrontPoint, differences: _Differences) -> str:
    best = size.best
    if best is None or size.share is None:
        return f"{_capital(size.stratum.label)}: no trial was completed."
    text = (
        f"{_capital(_share_words(size))} ({best.params:,}) at {_gap(best, base, differences)}: {best.name}"
        f"{_epochs(best)}, best of {size.candidates}."
    )
    if size.before is not None and size.before.initial_error is not None:
        gap = size.before.initial_error - base.own_error
        text += f" Before any training {gap:+.2f} points: {size.before.name}."
    if size.from_scratch is not None:
        other = size.from_scratch
        thinner = "a thinner network" if other.is_thin else method_label(other.method)
        text += (
            f" Within the same size {thinner} from scratch has {format_percent(other.error)} at {other.params:,}"
            f"{_epochs(other)}: {_comparison(differences.between(best, other))}."
        )
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


def _gap(point: FrontPoint, base: FrontPoint, differences: _Differences) -> str:
    """E.g. `+0.20 points (95 % interval -0.90 to +1.30, same images)`."""
    difference = differences.between(point, base)
    return f"{difference.mean:+.2f} points{difference.interval}"


def _comparison(difference: _Difference) -> str:
    """A compressed network minus another one in words; the interval is of the figure that stands before it."""
    if abs(difference.mean) < SAME_ERROR:
        return f"the compressed one has the same error{difference.interval}"
    if difference.mean > 0:
        return f"the compressed one is {difference.mean:.2f} points worse{difference.interval}"
    return f"the compressed one is {-difference.mean:.2f} points better{difference.reversed().interval}"


def _epochs(point: FrontPoint) -> str:
    """E.g. ` (3 epochs, 23 in all)`: the epochs of the trained network count in all."""
    epochs = f"{point.epochs} epoch{'s' * (point.epochs != 1)}"
    if point.method == UNCHANGED:
        return "" if point.total_epochs is None else f" ({point.total_epochs} epochs)"
    if point.start == "scratch":
        return f" ({epochs} in all)"
    return f" ({epochs})" if point.total_epochs is None else f" ({epochs}, {point.total_epochs} in all)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
