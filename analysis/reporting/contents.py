"""All numbers of a report as one typed record; nothing is drawn or written here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from analysis.findings.answer import Answer, PointComparison, answers, describe_size_level
from analysis.findings.cost import StudyCost, study_cost
from analysis.findings.curves import LearningCurve, learning_curves
from analysis.findings.failures import Failure, list_failures
from analysis.findings.heatmap import HeatMap, heat_maps
from analysis.findings.provenance import Provenance, study_provenance
from analysis.findings.published_results import PublishedResult, evaluation_setting, matching_results
from analysis.findings.reproduce import ReproduceCommand, reproduce_commands
from analysis.findings.test_errors import SettingTestError, measured_test_errors
from analysis.findings.time_profile import TimeProfile, profile_study
from analysis.reporting.render import InlineExecutor
from analysis.stats.factors import BUDGET, METHOD
from analysis.stats.front import (
    DENSE,
    SEPARABLE,
    FrontPoint,
    best_point,
    collect_points,
    find_reference,
    pareto_front,
    references,
    study_strata,
    validation_images,
)
from analysis.stats.importance import Importance, field_importances, searched_settings
from analysis.stats.intervals import newcombe_interval
from analysis.stats.paired_effects import ALL_ELSE_EQUAL, PairedEffect, find_paired_effects
from analysis.stats.seeds import RepeatedSetting, repeated_settings
from analysis.utils.formatting import format_percent, format_points
from sweeps.records.model import StudyRecord

MOST_EFFECTS = 3  # in words; the table has all


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a report says; see the modules of the parts."""

    summary: tuple[str, ...]
    answers: tuple[Answer, ...]
    points: tuple[FrontPoint, ...]
    front: tuple[FrontPoint, ...]
    front_mult_adds: tuple[FrontPoint, ...]
    references: tuple[FrontPoint, ...]
    about: Provenance
    on_test: tuple[SettingTestError, ...]
    printed: tuple[PublishedResult, ...]
    printed_note: str
    heat: tuple[HeatMap, ...]
    curves: tuple[LearningCurve, ...]
    importances: tuple[Importance, ...]
    effects: tuple[PairedEffect, ...]
    repeats: tuple[RepeatedSetting, ...]
    failures: tuple[Failure, ...]
    cost: StudyCost
    profile: TimeProfile | None
    recipes: tuple[ReproduceCommand, ...]


def contents(study: StudyRecord, folder: Path, executor: Executor | None = None) -> Contents:
    """Compute all numbers of a report.

    Args:
        study: the records.
        folder: that has the study's records, as the reader would type it.
        executor: computes what takes longest, while the caller's process does the other parts; None for this process.

    Returns:
        What the report says.
    """
    importances = (executor or InlineExecutor()).submit(field_importances, searched_settings(study))
    points, effects = collect_points(study), find_paired_effects(study)
    kept, by_work, known = pareto_front(points), pareto_front(points, "mult_adds"), references(points)
    printed, note = matching_results(evaluation_setting(study))
    again, known_best = repeated_settings(points), answers(study, points)
    return Contents(
        summary=tuple(summary(study, points, known_best, again, effects)), answers=tuple(known_best),
        points=tuple(points),
        front=tuple(kept), front_mult_adds=tuple(by_work), references=tuple(known), printed=tuple(printed),
        printed_note=note, heat=tuple(heat_maps(study)), curves=tuple(learning_curves(study, points)),
        importances=tuple(importances.result()), effects=tuple(effects), repeats=tuple(again),
        failures=tuple(list_failures(study)), cost=study_cost(study), profile=profile_study(study),
        recipes=tuple(reproduce_commands(study, [*kept, *known], folder)),
        on_test=tuple(measured_test_errors(points)), about=study_provenance(study),
    )  # fmt: skip


def summary(
    study: StudyRecord,
    points: Sequence[FrontPoint],
    by_budget: Sequence[Answer],
    again: Sequence[RepeatedSetting],
    effects: Sequence[PairedEffect] = (),
) -> list[str]:
    """The answer in a few sentences: the smallest network as good as the separable one, the dense one, thinner ones."""
    kept, images = pareto_front(points), validation_images(study)
    if not kept:
        return ["No trial was trained to its end, so there is no answer yet."]
    bases = [base for name in (SEPARABLE, DENSE) if (base := find_reference(points, name)) is not None]
    found = [_as_good(kept, base, images) for base in bases]
    if images and any(_equal_ones(kept, base, images) for base in bases):
        found.append(f"Not shown to be worse is not as good: {images:,} images cannot show a small difference.")
    found += _by_budget(by_budget)
    found += _against_thin(study, points, images)
    found += [_in_words(effect) for effect in effects if _is_asked(effect)][:MOST_EFFECTS]
    found += [_seeds(each) for each in again[:3]]
    if not again:
        found.append("Every setting was trained with one seed: how far another seed would move an error is not known.")
    return found


def _is_asked(effect: PairedEffect) -> bool:
    """Whether the budgets, the fronts and the thinner networks have not said it already."""
    return effect.pairing == ALL_ELSE_EQUAL and effect.factor != METHOD and not effect.factor.startswith(BUDGET)


def _in_words(effect: PairedEffect) -> str:
    estimate = effect.estimate
    text = f"{effect.factor} {effect.other} instead of {effect.base}, all else equal: {estimate.mean:+.2f} points"
    over = f"{estimate.count} {effect.unit if estimate.count != 1 else effect.unit.removesuffix('s')}"
    if estimate.low is None or estimate.high is None:
        return f"{text} over {over}, without an interval."
    return f"{text} (95 % interval {estimate.low:.2f} to {estimate.high:.2f} over {over}), {effect.verdict()}."


def _by_budget(known: Sequence[Answer]) -> list[str]:
    """A paragraph a budget; larger ones in which the same is best share one, and so do those without a result."""
    found = []
    for chosen, group in groupby(known, key=lambda answer: answer.best):
        first, *same = group
        if chosen is None:
            found.append(f"{_where([first, *same])}: no trial was trained to its end.")
            continue
        found.append(_in_short(first, chosen))
        if same:
            found.append(" ".join([f"{_where(same)}: the same.", *_levels(same)]))
    return found


def _where(found: Sequence[Answer]) -> str:
    """The budgets in words, e.g. `Up to 45,288 and 60,385 parameters`."""
    budgets = [answer.stratum for answer in found]
    if all(budget.params for budget in budgets):
        return f"Up to {_listed([f'{budget.params:,}' for budget in budgets])} parameters"
    return _listed([budget.label for budget in budgets]).capitalize()


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _levels(found: Sequence[Answer]) -> list[str]:
    return [describe_size_level(answer.level, brief=True) for answer in found if answer.level]


def _in_short(answer: Answer, chosen: FrontPoint) -> str:
    """What is best within one budget, how sure, by how much against the next best method, and all at equal size."""
    text = f"{_where([answer])}: {chosen.name}, {format_percent(chosen.error)}"
    if answer.interval is not None:
        text += f" (95 % interval {answer.interval[0]:.1f} to {answer.interval[1]:.1f})"
    rival = next((each for each in answer.comparisons if each.label.startswith("next best method")), None)
    return " ".join([f"{text}{_than(rival) if rival else ''}.", *_levels([answer])])


def _than(rival: PointComparison) -> str:
    size = " at equal size" if rival.level else ""
    if rival.gap == 0:
        return f", as good as {rival.other.form}{size}"
    verdict = {True: ", within noise", False: ", beyond noise", None: ""}[rival.within_noise]
    side = "better" if rival.gap < 0 else "worse"
    return f", {abs(rival.gap):.2f} points {side} than {rival.other.form}{size}{verdict}"


def _as_good(kept: Sequence[FrontPoint], base: FrontPoint, images: int | None) -> str:
    """The smallest of the front that is not shown to be worse than `base`, or how far the best stays behind.

    What is not smaller than `base` compresses nothing, and counts only where nothing else was trained.
    """
    kept = [point for point in kept if point.params < base.params] or kept
    whole = f"the {base.form} network ({format_percent(base.error)} at {base.params:,} parameters)"
    if images is None:
        top = min(kept, key=lambda point: (point.error, point.params))
        return f"The best is {_named(top)}, {top.error - base.error:+.2f} points against {whole}; its noise is unknown."
    equal = _equal_ones(kept, base, images)
    if not equal:
        top = min(kept, key=lambda point: (point.error, point.params))
        low, high = newcombe_interval(top.error, base.error, images)
        return (
            f"No network of the front that is smaller is as good as {whole}: the best, {_named(top)}, stays "
            f"{top.error - base.error:.2f} points behind (95 % interval {low:.1f} to {high:.1f})."
        )
    small = min(equal, key=lambda point: point.params)
    low, high = newcombe_interval(small.error, base.error, images)
    share = base.params / small.params
    size = f"{share:.1f} times smaller" if share >= 1 else f"{1 / share:.1f} times larger"
    return (
        f"The smallest network that {images:,} validation images do not show to be worse than {whole} is "
        f"{_named(small)}: "
        f"{size}, {small.error - base.error:+.2f} points ({_interval(low, high)})."
    )


def _equal_ones(kept: Sequence[FrontPoint], base: FrontPoint, images: int) -> list[FrontPoint]:
    """Those of the front that so many images do not show to be worse than `base`."""
    return [point for point in kept if newcombe_interval(point.error, base.error, images)[0] <= 0]


def _interval(low: float, high: float) -> str:
    return f"95 % interval {format_points(low, decimals=1)} to {format_points(high, decimals=1)}"


def _named(point: FrontPoint) -> str:
    return f"{point.name} with {point.params:,} parameters ({format_percent(point.error)})"


def _against_thin(study: StudyRecord, points: Sequence[FrontPoint], images: int | None) -> list[str]:
    """Whether the substitution beat simply making the network thinner, at each thinner network's size or budget."""
    thin = [point for point in points if point.finished and point.leads and point.is_thin]
    if not thin:
        return ["No thinner network was trained beside them: whether substitution beats thinning is not answered here."]
    limits = sorted(stratum.params for stratum in study_strata(study) if stratum.params)
    sizes: dict[int, list[FrontPoint]] = {}
    for point in thin:
        sizes.setdefault(next((limit for limit in limits if point.params <= limit), point.params), []).append(point)
    duels = []
    for size, rivals in sorted(sizes.items()):
        own = best_point(point for point in points if point.params <= size and not point.is_thin)
        if own is not None:
            duels.append((size, own, min(rivals, key=lambda point: point.error)))
    if not duels:
        return ["Every thinner network is smaller than the smallest substitution, so they cannot be compared."]
    won = sum(own.error < rival.error for _, own, rival in duels)
    text = f"Against thinner networks of the same budget, substitution is better at {won} of {len(duels)} sizes"
    return [f"{text}: {'; '.join(_duel(*duel, images) for duel in duels)}."]


def _duel(size: int, own: FrontPoint, rival: FrontPoint, images: int | None) -> str:
    text = (
        f"up to {size:,} parameters {own.name} {format_percent(own.error)}, {rival.name} {format_percent(rival.error)}"
    )
    if images is None:
        return text
    low, high = newcombe_interval(own.error, rival.error, images)
    return f"{text} ({own.error - rival.error:+.2f} points, {_interval(low, high)})"


def _seeds(each: RepeatedSetting) -> str:
    error = each.val_error
    assert error.low is not None
    assert error.high is not None
    text = (
        f"{each.point.name} with {each.point.params:,} parameters over {len(each.seeds)} seeds: "
        f"{format_percent(error.mean)} (95 % t-interval {error.low:.2f} to {error.high:.2f})"
    )
    if each.gap is None or each.gap.low is None or each.gap.high is None:
        return f"{text}."
    gap = each.gap
    return (
        f"{text}, {gap.mean:+.2f} points against separable, paired over {gap.count} seeds ({gap.low:+.2f} to "
        f"{gap.high:+.2f})."
    )
