"""How sure an answer is: the error of the best after its choice, and what is as good as a reference.

The functions of analysis.stats on the points of a study. Where the records say which images each network got wrong,
networks are compared on the same images. Studies of older versions have counts alone: their networks are taken as wrong
independently of each other, which makes everything less certain, and every sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats import (
    UNCHANGED,
    AsGood,
    FrontPoint,
    PairedDifference,
    SeedVariance,
    SelectedDifference,
    SelectedError,
    WrongBySeed,
    as_good_sizes,
    corrected_difference,
    corrected_error,
    default_margin,
    expand_counts,
    is_screened,
    pooled_seed_variance,
    same_images_difference,
    stack_settings,
    validation_images,
    wrong_by_setting,
)
from sweeps.records import StudyRecord, decidable_difference

OTHER_SEEDS, OTHER_IMAGES = 3, 2000  # what else would decide, where a study cannot tell


@dataclass(frozen=True)
class Evidence:
    """What a study knows of its networks.

    Attributes:
        wrong: id of the setting -> seed -> which validation images were wrong; empty where that is not on record.
        images: number of validation images; None where that is not on record either.
        screened: whether settings got further seeds for their first one, as the front of a search does.
        seeds: variance between seeds, over all settings that have several.
        margin: of "as good as", in points; None for the default.
    """

    wrong: Mapping[str, WrongBySeed]
    images: int | None
    screened: bool
    seeds: SeedVariance | None
    margin: float | None

    def margin_for(self, reference: FrontPoint) -> float:
        """Return the margin against a reference, in points of error."""
        return default_margin(reference.error) if self.margin is None else self.margin


@dataclass(frozen=True, kw_only=True)
class ChosenDifference:
    """The best of some points less another network, corrected for the choice.

    Attributes:
        selected: the difference in points of error; its p-value is that of this comparison alone.
        candidates: among how many points the best was chosen.
        seeds: over how many seeds of both.
        same_images: whether the networks were compared on the same images.
    """

    selected: SelectedDifference
    candidates: int
    seeds: int
    same_images: bool


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Whether a smaller network is as good as a reference.

    Attributes:
        point: the smallest that surely is; None where none is.
        difference: of that point, or of the best smaller network, to the reference.
        best: the best smaller network.
        margin: in points.
        candidates: among how many it was chosen.
        same_images: whether the networks were compared on the same images.
        decides: the difference that the study can decide, in points.
    """

    point: FrontPoint | None
    difference: SelectedDifference
    best: FrontPoint
    margin: float
    candidates: int
    same_images: bool
    decides: float


def study_evidence(study: StudyRecord) -> Evidence:
    """Collect what a study knows of its networks.

    Args:
        study: the records.

    Returns:
        The evidence.

    Raises:
        InputError: a record of wrong images is damaged.
    """
    wrong = wrong_by_setting(study)
    margin = study.header.section("answer").get("margin")
    return Evidence(
        wrong=wrong, images=validation_images(study), screened=is_screened(study),
        seeds=pooled_seed_variance(wrong.values()), margin=float(margin) if isinstance(margin, int | float) else None,
    )  # fmt: skip


def selected_error(points: Sequence[FrontPoint], evidence: Evidence) -> SelectedError | None:
    """Return the error of the best of points, corrected for the choice.

    Args:
        points: among which the best was chosen; those that may not be chosen are ignored.
        evidence: of the study.

    Returns:
        The error with its interval; None where the number of images is not known or nothing was trained.
    """
    candidates = _candidates(points)
    wrong, _ = _lay_out(candidates, evidence)
    if wrong is None:
        return None
    return corrected_error(wrong, _is_screened(wrong, evidence), evidence.seeds)


def chosen_difference(
    points: Sequence[FrontPoint], others: Sequence[FrontPoint], evidence: Evidence
) -> ChosenDifference | None:  # fmt: skip
    """Compare the best of points with another, and pay for the choices.

    Args:
        points: among which the best was chosen; those that may not be chosen are ignored. A single one, such as a
            reference, was not chosen.
        others: one that was fixed beforehand, such as a reference, or several of which the best was chosen.
        evidence: of the study.

    Returns:
        Best minus other; None where the number of images is not known or nothing was trained. The trained network that
        a study begins with is the same for every seed.
    """
    candidates = list(points) if len(points) == 1 else _candidates(points)
    if not candidates or not others:
        return None
    wrong, other, same_images = _lay_out_both(candidates, others, evidence)
    if wrong is None or other is None:
        return None
    screened = _is_screened(wrong, evidence) and len(candidates) > 1
    others_screened = _is_screened(other, evidence) and len(others) > 1 and all(point.eligible for point in others)
    return ChosenDifference(
        selected=corrected_difference(wrong, other, screened, evidence.seeds, others_screened),
        candidates=len(candidates), seeds=wrong.shape[1], same_images=same_images,
    )  # fmt: skip


def equivalence(points: Sequence[FrontPoint], reference: FrontPoint, evidence: Evidence) -> Equivalence | None:
    """Return the smallest network that is surely as good as a reference.

    Args:
        points: of a study.
        reference: it compresses nothing to be as large, so only smaller networks count.
        evidence: of the study.

    Returns:
        What is as good, or how far the best stays behind; None where no network is smaller or images are unknown.
    """
    candidates = [point for point in _candidates(points) if point.params < reference.params]
    if not candidates:
        return None
    wrong, references, same_images = _lay_out_both(candidates, [reference], evidence)
    if wrong is None or references is None:
        return None
    base = references[0]
    screened, margin = _is_screened(wrong, evidence), evidence.margin_for(reference)
    sizes = [point.params for point in candidates]
    claims: list[AsGood] = as_good_sizes(wrong, sizes, base, margin, screened, evidence.seeds)
    smallest = candidates[claims[-1].chosen] if claims else None
    difference = claims[-1].difference if claims else corrected_difference(wrong, base, screened, evidence.seeds)
    deviation = evidence.seeds.deviation if evidence.seeds and wrong.shape[1] > 1 else None
    best = candidates[0]
    error = (best.error + reference.error) / 2
    return Equivalence(
        point=smallest, difference=difference, best=best, margin=margin, candidates=len(candidates),
        same_images=same_images,
        decides=decidable_difference(
            wrong.shape[2], wrong.shape[1], error, deviation, _discordance(wrong[0], base, error)
        ),
    )  # fmt: skip


def _discordance(first: NDArray[np.bool_], second: NDArray[np.bool_], error: float) -> float:
    """Images on which one of two is wrong alone, as a share of their mean error; 0.1 where there are hardly any."""
    return max(0.1, 100 * float((first ^ second).mean()) / error) if error > 0 else 1.0


def compare_points(first: FrontPoint, second: FrontPoint, evidence: Evidence) -> PairedDifference | None:
    """Compare two settings on the same images.

    Args:
        first: a point of the study.
        second: another one.
        evidence: of the study.

    Returns:
        First minus second in points, over seeds as `same_images_difference` pairs them; None where their wrong images
        are not on record.
    """
    wrong = evidence.wrong
    return same_images_difference(wrong.get(first.setting, {}), wrong.get(second.setting, {}), evidence.seeds)


def describe_equivalence(result: Equivalence, reference: str, base: FrontPoint, evidence: Evidence) -> str:
    """Say whether a smaller network is as good as a reference.

    Args:
        result: of `equivalence`.
        reference: the reference in words.
        base: the reference.
        evidence: of the study.

    Returns:
        One sentence or two.
    """
    gap = result.difference
    how = "on the same images" if result.same_images else "taken as two samples: the wrong images are not on record"
    chosen = f"{how}, corrected for the choice among {result.candidates}"
    if result.point is not None:
        point = result.point
        return (
            f"The smallest network that is as good as {reference} is {point.description}: "
            f"{base.params / point.params:.1f} times smaller, not more than {_points(result.margin)} worse (95 %; "
            f"{gap.mean:+.2f} points, {chosen})."
        )
    best = result.best.description
    if gap.low > result.margin:
        return (
            f"No smaller network is as good as {reference}: the best, {best}, is {gap.mean:.2f} points worse "
            f"(95 % interval {gap.low:.1f} to {gap.high:.1f}, {chosen})."
        )
    return (
        f"We cannot tell whether a smaller network is as good as {reference}, within {_points(result.margin)}: the "
        f"best, {best}, is at most {gap.upper:.1f} points worse (95 %, {chosen}). "
        f"{_what_would_decide(result, evidence)}"
    )


def _what_would_decide(result: Equivalence, evidence: Evidence) -> str:
    images, seeds = evidence.images or 0, result.best.seeds
    deviation = evidence.seeds.deviation if evidence.seeds else None
    more_seeds, more_images = max(OTHER_SEEDS, seeds), max(OTHER_IMAGES, images)
    ratio = (images * seeds) / (more_images * more_seeds)
    better = result.decides * ratio**0.5
    if deviation is not None:
        better = max(better, decidable_difference(10**9, more_seeds, 1.0, deviation))
    with_seeds = f"{seeds} seeds" if seeds > 1 else "one seed"
    text = f"{images:,} images and {with_seeds} decide differences over {result.decides:.1f} points"
    if ratio == 1:
        return f"{text}."
    unknown = " if seeds do not differ" if deviation is None else ""
    return f"{text}; {more_seeds} seeds on {more_images:,} images would decide {better:.1f}{unknown}."


def _points(margin: float) -> str:
    return f"{margin:.2g} point{'s' * (margin != 1)}"


def _candidates(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points among which the best is chosen, best first, as `best_point` orders them."""
    eligible = [point for point in points if point.eligible and point.competes]
    return sorted(eligible, key=lambda point: (point.error, point.params, point.trial_id))


def _lay_out(points: Sequence[FrontPoint], evidence: Evidence) -> tuple[NDArray[np.bool_] | None, bool]:
    """`[setting, seed, image]` over the seeds that all have, and whether they are of the same images."""
    if not points or evidence.images is None:
        return None, False
    stacked = stack_settings([evidence.wrong.get(point.setting, {}) for point in points])
    if stacked is not None:
        return stacked, True
    return expand_counts([point.error for point in points], evidence.images)[:, None], False


def _lay_out_both(
    candidates: Sequence[FrontPoint], others: Sequence[FrontPoint], evidence: Evidence
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None, bool]:
    """As `_lay_out`, for two groups; a trained network that a study begins with has one seed beside all of theirs."""
    trained = evidence.wrong.get(others[0].setting) if others[0].method == UNCHANGED else None
    if trained:
        wrong, same_images = _lay_out(candidates, evidence)
        bits = next(iter(trained.values()))
        if same_images and wrong is not None and wrong.shape[2] == len(bits):
            return wrong, bits[None, None], True
    stacked, same_images = _lay_out([*candidates, *others], evidence)
    if stacked is None:
        return None, None, False
    return stacked[: len(candidates)], stacked[len(candidates) :], same_images


def _is_screened(wrong: NDArray[np.bool_], evidence: Evidence) -> bool:
    return evidence.screened and wrong.shape[1] > 1
