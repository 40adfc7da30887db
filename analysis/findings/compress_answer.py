"""What a study that begins with a trained network answers: how much smaller, at which loss, before and after training.

Every sentence compares with the trained network as it is, the reference `unchanged`. Errors are validation errors in
percent, differences points of error; negative is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.stats import (
    DENSE,
    SEPARABLE,
    UNCHANGED,
    ErrorsBySeed,
    FrontPoint,
    Stratum,
    best_point,
    errors_by_seed,
    find_reference,
    newcombe_interval,
    paired_difference,
    references,
    study_strata,
    validation_images,
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
        own = [point for point in points if point.stratum == stratum.label and point.eligible]
        best = best_point(own)
        measured = [point for point in own if point.initial_error is not None]
        limit = stratum.params or (best.params if best else 0)
        scratch = [point for point in references(points) if point.start == "scratch" and point.params <= limit]
        sizes.append(CompressedSize(
            stratum=stratum, best=best, share=best.params / base.params if best else None,
            before=min(measured, key=lambda point: (point.initial_error or 0.0, point.params), default=None),
            from_scratch=min(scratch, key=lambda point: (point.error, point.params), default=None),
            candidates=len(own),
        ))  # fmt: skip
    return sizes


def compress_paragraphs(study: StudyRecord, points: Sequence[FrontPoint]) -> list[str]:
    """Answer how much smaller a trained network can be.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        A paragraph on the trained network, then one for each budget, largest first; empty for a study that does not
        begin with a trained network.
    """
    base, images = find_reference(points, UNCHANGED), validation_images(study)
    if base is None:
        return []
    seeds = errors_by_seed(points)
    sizes = compressed_sizes(study, points)
    return [_trained_paragraph(base, points, images, seeds), *(_size_paragraph(s, base, images, seeds) for s in sizes)]


def _trained_paragraph(
    base: FrontPoint, points: Sequence[FrontPoint], images: int | None, seeds: Mapping[str, ErrorsBySeed]
) -> str:  # fmt: skip
    text = f"The trained network as it is: {format_percent(base.error)} at {base.params:,} parameters{_epochs(base)}."
    for name, verb in ((DENSE, "Trained on"), (SEPARABLE, "Separable, started from it and trained on")):
        other = find_reference(points, name)
        if other is not None:
            size = "" if other.params == base.params else f" at {other.params:,} parameters"
            text += f" {verb}{_epochs(other)}: {_gap(other, base, images, seeds)}{size}."
    return text


def _size_paragraph(
    size: CompressedSize, base: FrontPoint, images: int | None, seeds: Mapping[str, ErrorsBySeed]
) -> str:  # fmt: skip
    best = size.best
    if best is None or size.share is None:
        return f"{_capital(size.stratum.label)}: no trial was completed."
    text = (
        f"{_capital(_share_words(size))} ({best.params:,}) at {_gap(best, base, images, seeds)}: {best.name}"
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
            f"{_epochs(other)}: {_difference(best, other, images, seeds)}."
        )
    return text


def _share_words(size: CompressedSize) -> str:
    """The budget in words where it has some, such as `half the parameters`, else the share of the best network."""
    _, sign, limit = size.stratum.label.partition("params <= ")
    share = float(limit.split()[0]) if sign and limit.endswith(" of dense") else size.share
    assert share is not None
    for known, words in SHARE_WORDS.items():
        if abs(share / known - 1) <= SAME_SHARE:
            return words
    return f"{100 * share:.3g} % of the parameters"


def _gap(point: FrontPoint, base: FrontPoint, images: int | None, seeds: Mapping[str, ErrorsBySeed]) -> str:
    """E.g. `+0.20 points (95 % interval -0.90 to +1.30)`; the trained network has one error, whatever the seed."""
    return f"{point.error - base.own_error:+.2f} points{_interval(point, base, images, seeds)}"


def _difference(best: FrontPoint, other: FrontPoint, images: int | None, seeds: Mapping[str, ErrorsBySeed]) -> str:
    gap = best.error - other.error
    if abs(gap) < SAME_ERROR:
        return f"the compressed one is as good{_interval(best, other, images, seeds)}"
    if gap > 0:
        return f"the compressed one is {gap:.2f} points worse{_interval(best, other, images, seeds)}"
    return f"the compressed one is {-gap:.2f} points better{_interval(other, best, images, seeds)}"


def _interval(point: FrontPoint, other: FrontPoint, images: int | None, seeds: Mapping[str, ErrorsBySeed]) -> str:
    """The interval of point minus other: over seeds where there are several, else from the number of images."""
    ours, theirs = seeds.get(point.setting, {}), seeds.get(other.setting, {})
    if other.method == UNCHANGED:  # it has one error, whatever the seed
        theirs = dict.fromkeys(ours, other.own_error)
    estimate = paired_difference(ours, theirs)
    if estimate is not None and estimate.low is not None and estimate.high is not None:
        ends = f"{format_points(estimate.low)} to {format_points(estimate.high)}"
        return f" (95 % interval {ends}, over {estimate.count} seeds)"
    if images is None:
        return ""
    low, high = newcombe_interval(point.error, other.error, images)
    return f" (95 % interval {format_points(low)} to {format_points(high)})"


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
