"""All numbers of a report as one typed record; nothing is drawn or written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from analysis.findings import (
    Answer,
    ChosenDifference,
    Evidence,
    Failure,
    HeatMap,
    LearningCurve,
    PointComparison,
    Provenance,
    PublishedResult,
    ReproduceCommand,
    SettingTestError,
    StudyCost,
    TimeProfile,
    answers,
    chosen_difference,
    common_sentence,
    comparisons_sentence,
    compress_answer,
    describe_equivalence,
    describe_size_level,
    equivalence,
    evaluation_setting,
    heat_maps,
    learning_curves,
    list_failures,
    matching_results,
    measured_test_errors,
    profile_study,
    reproduce_commands,
    study_cost,
    study_evidence,
    study_provenance,
    undecided_sentence,
)
from analysis.reporting.render import InlineExecutor
from analysis.stats import (
    ALARM_LEVEL,
    ALL_ELSE_EQUAL,
    BUDGET,
    DENSE,
    METHOD,
    SEPARABLE,
    FrontPoint,
    Importance,
    PairedEffect,
    RepeatedSetting,
    best_point,
    collect_points,
    count_compared,
    field_importances,
    find_paired_effects,
    find_reference,
    holm_p_values,
    pareto_front,
    references,
    repeated_settings,
    searched_settings,
    split_common_extras,
    study_strata,
)
from analysis.utils import format_percent, format_points, join_words
from lowrank.utils import format_counted
from sweeps.records import Role, StudyRecord

SHOWN_EFFECTS = 3  # in the summary; the table has all
SHOWN_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Report:
    """All numbers of a report; the types of its fields say what they hold.

    Attributes:
        summary: the answer, in paragraphs.
        evidence: which images were wrong, from which pictures of the fronts get their intervals.
        front: the points that no other beats in error and parameters; `front_mult_adds` in error and mult-adds.
        published: test errors from papers of the same network, data and split; `published_note` says why none are
            shown.
        effects: what one choice changed, all else equal.
        repeats: settings that were trained with several seeds.
        reproduce_commands: one for each point of the front and each reference.
    """

    summary: tuple[str, ...]
    answers: tuple[Answer, ...]
    points: tuple[FrontPoint, ...]
    evidence: Evidence
    front: tuple[FrontPoint, ...]
    front_mult_adds: tuple[FrontPoint, ...]
    references: tuple[FrontPoint, ...]
    provenance: Provenance
    test_errors: tuple[SettingTestError, ...]
    published: tuple[PublishedResult, ...]
    published_note: str
    heat_maps: tuple[HeatMap, ...]
    curves: tuple[LearningCurve, ...]
    importances: tuple[Importance, ...]
    effects: tuple[PairedEffect, ...]
    repeats: tuple[RepeatedSetting, ...]
    failures: tuple[Failure, ...]
    cost: StudyCost
    profile: TimeProfile | None
    reproduce_commands: tuple[ReproduceCommand, ...]


def build_report(study: StudyRecord, folder: Path, executor: Executor | None = None) -> Report:
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
    front, reference_points = pareto_front(points), references(points)
    published, note = matching_results(evaluation_setting(study))
    evidence = study_evidence(study)
    repeats, budget_answers = repeated_settings(points, wrong=evidence.wrong), answers(study, points, evidence)
    return Report(
        summary=tuple(summarise(study, points, budget_answers, repeats, effects, evidence)),
        answers=tuple(budget_answers),
        points=tuple(points),
        evidence=evidence,
        front=tuple(front),
        front_mult_adds=tuple(pareto_front(points, "mult_adds")),
        references=tuple(reference_points),
        provenance=study_provenance(study),
        test_errors=tuple(measured_test_errors(points)),
        published=tuple(published),
        published_note=note,
        heat_maps=tuple(heat_maps(study)),
        curves=tuple(learning_curves(study, points)),
        importances=tuple(importances.result()),
        effects=tuple(effects),
        repeats=tuple(repeats),
        failures=tuple(list_failures(study)),
        cost=study_cost(study),
        profile=profile_study(study),
        reproduce_commands=tuple(reproduce_commands(study, [*front, *reference_points], folder)),
    )


def summarise(
    study: StudyRecord,
    points: Sequence[FrontPoint],
    budget_answers: Sequence[Answer],
    repeats: Sequence[RepeatedSetting],
    effects: Sequence[PairedEffect] = (),
    evidence: Evidence | None = None,
) -> list[str]:
    """Answer the study's question in a few sentences.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        budget_answers: one for each budget, smallest first.
        repeats: settings that were trained with several seeds.
        effects: what one choice changed.
        evidence: of the study; None to collect it here.

    Returns:
        Paragraphs. The first answers the question: what is best within each budget, or whether that is better than a
        thinner network where the space asks it. Then the first effects, the smallest network as good as the separable
        and the dense one, each budget with its runner-up, thinner networks, what the front cannot tell apart, repeats.
    """
    points, common = split_common_extras(points)
    front, evidence = pareto_front(points), evidence or study_evidence(study)
    if not front:
        return ["No trial was trained to its end, so there is no answer yet."]
    by_id = {point.trial_id: point for point in points}
    budget_answers = [_with_names(answer, by_id) for answer in budget_answers]
    paragraphs = compress_answer(study, points, budget_answers, evidence)
    begins_trained = bool(paragraphs)
    if not begins_trained:  # else the answer on the trained network has said it
        bases = [base for name in (SEPARABLE, DENSE) if (base := find_reference(points, name)) is not None]
        paragraphs += [_compare_with_reference(points, front, base, evidence) for base in bases]
        first = _first_sentence(study, points, budget_answers, evidence)
        paragraphs = [*first, *_effect_paragraphs(effects), *paragraphs]
        paragraphs += _budget_paragraphs(budget_answers)
        paragraphs += [sentence] if (sentence := comparisons_sentence(budget_answers)) else []
        paragraphs += [] if _searches_thin(points) else _compare_with_thin(study, points, evidence)
    if common:
        paragraphs.insert(1, common_sentence(common))
    paragraphs += [sentence] if (sentence := undecided_sentence(study, points, evidence)) else []
    paragraphs += _effect_paragraphs(effects) if begins_trained else []
    paragraphs += [_seeds_sentence(repeat) for repeat in repeats[:SHOWN_REPEATS]]
    if repeats and evidence.screened:
        paragraphs.append(
            "These settings got further seeds because the first one did well, which their means include: they are not "
            "corrected for that choice."
        )
    if not repeats:
        paragraphs.append(
            "Every setting was trained with one seed: how far another seed would move an error is not known."
        )
    return paragraphs


def _first_sentence(
    study: StudyRecord, points: Sequence[FrontPoint], budget_answers: Sequence[Answer], evidence: Evidence
) -> list[str]:
    """The answer with its uncertainty; where thinner networks are searched, whether they are worse comes first."""
    clauses = []
    for best, group in groupby(budget_answers, key=lambda answer: answer.best):
        budgets = list(group)
        if best is not None:
            label = _budgets_label(budgets)
            clauses.append(f"{label[0].lower()}{label[1:]}: {best.name}, {_measured(budgets[0], best)}")
    thin = _compare_with_thin(study, points, evidence) if _searches_thin(points) else []
    return [*thin, *([f"Best, {'; '.join(clauses)}."] if clauses else [])]


def _measured(answer: Answer, best: FrontPoint) -> str:
    """The error of the best, how sure it is, and what that says against the next best method."""
    parts = [format_counted(best.seeds, "seed")]
    if answer.interval is not None:
        low, high = answer.interval
        parts.append(f"95 % interval {low:.1f} to {high:.1f}")
    if (rival := answer.next_best) is not None:
        parts.append(_rival_clause(rival))
    return f"{format_percent(best.error)} validation error ({'; '.join(parts)})"


def _searches_thin(points: Sequence[FrontPoint]) -> bool:
    return any(point.is_thin and point.role is not Role.REFERENCE for point in points)


def _with_names(answer: Answer, points: Mapping[str, FrontPoint]) -> Answer:
    """The answer with the names of these points, by the ids of their trials."""
    comparisons = tuple(replace(entry, other=points[entry.other.trial_id]) for entry in answer.comparisons)
    best = answer.best and points[answer.best.trial_id]
    return replace(answer, best=best, comparisons=comparisons)


def _is_news(effect: PairedEffect) -> bool:
    """Whether the budgets, the fronts and the thinner networks have not said it already."""
    return effect.pairing == ALL_ELSE_EQUAL and effect.factor != METHOD and not effect.factor.startswith(BUDGET)


def _effect_paragraphs(effects: Sequence[PairedEffect]) -> list[str]:
    """The strongest effects; how many were compared, because one of many looks strong by chance."""
    shown = [effect for effect in effects if _is_news(effect)][:SHOWN_EFFECTS]
    compared = max((effect.comparisons for effect in effects), default=0)
    sentences = [_effect_sentence(effect) for effect in shown]
    if shown and compared > 1:
        sentences[0] = f"Of {compared} effects that were compared, corrected for their number: {sentences[0]}"
    return sentences


def _effect_sentence(effect: PairedEffect) -> str:
    estimate = effect.estimate
    text = f"{effect.factor} {effect.other} instead of {effect.base}, all else equal: {estimate.mean:+.2f} points"
    over = f"{estimate.count} {effect.unit if estimate.count != 1 else effect.unit.removesuffix('s')}"
    if estimate.low is None or estimate.high is None:
        return f"{text} over {over}, without an interval."
    return f"{text} (95 % interval {estimate.low:.2f} to {estimate.high:.2f} over {over}), {effect.verdict()}."


def _budget_paragraphs(budget_answers: Sequence[Answer]) -> list[str]:
    """A paragraph a budget; larger ones in which the same is best share one, and so do those without a result."""
    paragraphs = []
    for best, group in groupby(budget_answers, key=lambda answer: answer.best):
        first, *same = group
        if best is None:
            for is_reachable in (False, True):
                budgets = [answer for answer in (first, *same) if is_reachable is not bool(answer.stratum.unreachable)]
                reason = "no trial was trained to its end" if is_reachable else "no method can meet the budget"
                if budgets and (cause := budgets[-1].stratum.unreachable):
                    reason += f": {cause}"
                paragraphs += [f"{_budgets_label(budgets)}: {reason}."] if budgets else []
            continue
        paragraphs.append(_budget_sentence(first, best))
        if same:
            at_size = [line for line in _equal_size_sentences(same) if line not in _equal_size_sentences([first])]
            paragraphs.append(" ".join([f"{_budgets_label(same)}: the same.", *dict.fromkeys(at_size)]))
    return paragraphs


def _budgets_label(budget_answers: Sequence[Answer]) -> str:
    """The budgets in words, e.g. `Up to 45,288 and 60,385 parameters`."""
    strata = [answer.stratum for answer in budget_answers]
    if all(stratum.params for stratum in strata):
        return f"Up to {join_words([f'{stratum.params:,}' for stratum in strata])} parameters"
    return join_words([stratum.label for stratum in strata]).capitalize()


def _equal_size_sentences(budget_answers: Sequence[Answer]) -> list[str]:
    return [describe_size_level(answer.level, brief=True) for answer in budget_answers if answer.level]


def _budget_sentence(answer: Answer, best: FrontPoint) -> str:
    """What is best within one budget, how sure, and all methods at equal size."""
    text = f"{_budgets_label([answer])}: {best.name}, {format_percent(best.error)}"
    if answer.interval is not None:
        low, high = answer.interval
        choice = f"best of {answer.candidates}; corrected for the choice {format_percent(answer.corrected or 0.0)}, "
        if answer.candidates == 1:
            choice = "the only one; "
        text += f" ({choice}95 % interval {low:.1f} to {high:.1f})"
    return " ".join([f"{text}.", *_equal_size_sentences([answer])])


def _rival_clause(rival: PointComparison) -> str:
    """The difference as it was measured; better or worse is said only of what is beyond noise after all corrections."""
    size = " at equal size" if rival.level else ""
    seeds = f" {rival.shared_seeds}" if rival.shared_seeds else ""
    if rival.gap == 0:
        return f"the same measured error as {rival.other.form}{size}{seeds}"
    side = ("better", "worse") if rival.within_noise is False else ("lower", "higher")
    verdict = {True: ", within noise", False: ", beyond noise", None: ", noise unknown"}[rival.within_noise]
    if rival.level is not None:
        verdict += ", not corrected for the choice"
    return f"{abs(rival.gap):.2f} points {side[rival.gap > 0]} than {rival.other.form}{size}{seeds}{verdict}"


def _compare_with_reference(
    points: Sequence[FrontPoint], front: Sequence[FrontPoint], base: FrontPoint, evidence: Evidence
) -> str:  # fmt: skip
    """The smallest network that is surely as good as `base`, or how far the best stays behind.

    What is not smaller than `base` compresses nothing.
    """
    reference = f"the {base.form} network ({format_percent(base.error)} at {base.params:,} parameters)"
    smaller = [point for point in front if point.params < base.params]
    best = min(smaller or front, key=lambda point: (point.error, point.params))
    if not smaller:
        return f"No network that was trained to its end is smaller than {reference}; the best is {best.description}."
    verdict = equivalence(points, base, evidence)
    if verdict is None:
        gap = f"{best.error - base.error:+.2f} points against {reference}"
        return f"The best is {best.description}, {gap}; its noise is unknown."
    return describe_equivalence(verdict, reference, base, evidence)


def _interval(low: float, high: float) -> str:
    return f"95 % interval {format_points(low, decimals=1)} to {format_points(high, decimals=1)}"


def _compare_with_thin(study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence) -> list[str]:
    """Whether substitution beats a thinner network, at each thinner network's size or budget."""
    thin = [point for point in points if point.finished and point.leads and point.is_thin]
    if not thin:
        return ["No thinner network was trained beside them: whether substitution beats thinning is not answered here."]
    limits = sorted(stratum.params for stratum in study_strata(study) if stratum.params)
    by_size: dict[int, list[FrontPoint]] = {}
    for point in thin:
        by_size.setdefault(next((limit for limit in limits if point.params <= limit), point.params), []).append(point)
    pairs, compared = [], []
    for size, rivals in sorted(by_size.items()):
        best = best_point(point for point in points if point.params <= size and not point.is_thin)
        if best is not None:
            pairs.append((size, best, min(rivals, key=lambda point: point.error)))
            compared.append((size, rivals))
    if not pairs:
        return ["Every thinner network is smaller than the smallest substitution, so they cannot be compared."]
    comparisons = [
        chosen_difference([point for point in points if point.params <= size and not point.is_thin], rivals, evidence)
        for size, rivals in compared
    ]
    corrected = holm_p_values([None if c is None else c.selected.p_value for c in comparisons])
    number = count_compared(corrected)
    lower = sum(best.error < rival.error for _, best, rival in pairs)
    text = f"Against thinner networks of the same budget, substitution has the lower error at {lower} of {len(pairs)} "
    text += f"size{'s' * (len(pairs) != 1)}"
    if number:
        beyond = [
            c.selected.mean for c, p_value in zip(comparisons, corrected, strict=True)
            if c is not None and p_value is not None and p_value <= ALARM_LEVEL
        ]  # fmt: skip
        better = sum(mean < 0 for mean in beyond)
        both = " and their number (Holm)" if number > 1 else ""
        text += f"; corrected for the choice{both} it is better at {better} and worse at {len(beyond) - better}"
    clauses = [_pair_clause(*pair, c) for pair, c in zip(pairs, comparisons, strict=True)]
    return [f"{text}: {'; '.join(clauses)}."]


def _pair_clause(size: int, best: FrontPoint, rival: FrontPoint, difference: ChosenDifference | None) -> str:
    errors = f"{best.name} {format_percent(best.error)}, {rival.name} {format_percent(rival.error)}"
    text = f"up to {size:,} parameters {errors}"
    if difference is None:
        return text
    selected, how = difference.selected, ", same images" if difference.same_images else ""
    return (
        f"{text} ({format_points(best.error - rival.error)} points; corrected {format_points(selected.mean)}, "
        f"{_interval(selected.low, selected.high)}{how})"
    )


def _seeds_sentence(repeat: RepeatedSetting) -> str:
    error, gap = repeat.val_error, repeat.gap
    assert error.low is not None
    assert error.high is not None
    text = (
        f"{repeat.point.name} with {repeat.point.params:,} parameters over {len(repeat.seeds)} seeds: "
        f"{format_percent(error.mean)} (95 % t-interval {error.low:.2f} to {error.high:.2f})"
    )
    if gap is None or gap.low is None or gap.high is None:
        return f"{text}."
    seeds = format_counted(gap.count, "seed")
    how = "same images" if repeat.same_images else "not paired by image"
    return (
        f"{text}, {gap.mean:+.2f} points against separable, paired over {seeds} ({gap.low:+.2f} to {gap.high:+.2f}, "
        f"{how})."
    )
