"""What the value of one factor changes, all else equal: paired differences of the validation error, with intervals.

Two ways of pairing, because most searches have few trials that differ in one factor alone:

* "all else equal": trials that differ in exactly one factor (analysis.stats.factors), seed included. Differences are
  averaged within each seed, and the interval is over seeds; with one seed it is over the settings that were paired.
* "best within each budget": of a searched field, in each stratum of size the best setting of one value against the best
  of the other, each by its mean error over seeds. The interval is over budgets. Other factors differ, and the values
  may have been tried unequally often: it is shown only where no two trials make an exact pair.

Only trials that trained to their end take part. A difference is `other` minus `base` in points of error: negative means
that `other` is better.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from analysis.stats.factors import BUDGET, METHOD, FactorValues, factor_values, shared_factors, varying_factors
from analysis.stats.front import searched_trials, validation_images
from analysis.stats.intervals import Estimate, t_interval, within_image_noise
from analysis.utils import method_label
from sweeps.records import StudyRecord, TrialRecord, group_by_point, mean_error

ALL_ELSE_EQUAL, BEST_WITHIN_BUDGET = "all else equal", "best within each budget"
METHOD_FIELDS = ("method.", "network.width")
MAX_VALUES = 9  # a number with more is continuous: importance and the heat map show it
MAX_NAMES = 16  # e.g. methods


@dataclass(frozen=True, kw_only=True)
class PairedEffect:
    """One value of a factor against another.

    Attributes:
        factor: its dotted name.
        base: a value, in words.
        other: the value that is compared with it.
        pairing: `ALL_ELSE_EQUAL` or `BEST_WITHIN_BUDGET`.
        estimate: mean of `other - base` in points of error, over the units.
        unit: what the interval is over: "seeds", "settings" or "budgets".
        pairs: how many pairs there are.
        seeds: how many seeds they have.
        errors: of base and other, in percent, means over the pairs.
        images: on which each error was measured; None if the study does not have it.
    """

    factor: str
    base: str
    other: str
    pairing: str
    estimate: Estimate
    unit: str
    pairs: int
    seeds: int
    errors: tuple[float, float]
    images: int | None = None

    def verdict(self) -> str:
        """Return the effect in a few words: `better`, `worse`, `within noise`, or why there is no interval.

        An interval over seeds or settings does not include the noise of the images, which are the same for all: with
        few of them errors lie on a coarse grid, and two differences may even be equal.
        """
        if self.estimate.beyond_noise is None:
            return f"one {self.unit.removesuffix('s')}: no interval"
        if not self.estimate.beyond_noise:
            return "within noise"
        side = "better" if self.estimate.mean < 0 else "worse"
        few = self.images is not None and within_image_noise(*self.errors, self.images)
        return f"{side}, but within the noise of the images" if few else side


@dataclass(frozen=True)
class _FactorTrial:
    """A finished trial with the values of its factors."""

    record: TrialRecord
    fields: FactorValues

    @property
    def error(self) -> float:
        return mean_error([self.record])


def find_paired_effects(study: StudyRecord) -> list[PairedEffect]:
    """Compare every pair of values of every factor that has few enough of them.

    Args:
        study: the records.

    Returns:
        The effects, exact pairs first, then by factor.
    """
    trials = [_FactorTrial(trial, factor_values(trial)) for trial in searched_trials(study)]
    names = varying_factors([trial.fields for trial in trials])
    searched = frozenset(name for trial in trials for name in trial.record.parameters)
    effects, images = [], validation_images(study)
    for factor in _factors(study, trials, names):
        values = sorted({trial.fields[factor] for trial in trials if factor in trial.fields}, key=_order)
        shared = shared_factors(factor, names, searched)
        best = _best_of_budgets(trials, factor) if factor in searched and not factor.startswith(BUDGET) else {}
        for base, other in combinations(values, 2):
            candidates = [trial for trial in trials if trial.fields.get(factor) in (base, other)]
            effect = _effect_all_else_equal(candidates, factor, base, other, shared)
            effect = effect or _effect_within_budgets(candidates, factor, base, other, best)
            effects += [replace(effect, images=images)] if effect else []
    return sorted(effects, key=lambda effect: (effect.pairing != ALL_ELSE_EQUAL, effect.factor))


def _factors(study: StudyRecord, trials: Sequence[_FactorTrial], names: Sequence[str]) -> list[str]:
    """The factors with two values or more, but not too many; fields that were drawn from a range are left out.

    Where the records do not hold the space, a field counts as drawn from a range if no value of it came twice and they
    are no whole numbers.
    """
    ranges = _ranges(study.header.get("space") or {})
    factors = []
    for name in names:
        values = [trial.fields[name] for trial in trials if name in trial.fields]
        distinct = set(values)
        drawn = name in ranges if ranges is not None else len(distinct) == len(values) and _are_reals(distinct)
        max_values = MAX_NAMES if all(value.startswith('"') for value in distinct) else MAX_VALUES
        if not drawn and 2 <= len(distinct) <= max_values:
            factors.append(name)
    return factors


def _are_reals(values: Iterable[str]) -> bool:
    numbers = [json.loads(number) for number in values]
    return all(isinstance(number, float) for number in numbers) and not all(number.is_integer() for number in numbers)


def _ranges(space: Mapping[str, Any]) -> set[str] | None:
    """Names of the space's fields that are drawn from a range of real numbers; None without a space."""
    if not any(isinstance(space.get(section), Mapping | list) for section in ("train", "method")):
        return None
    ranges = set()
    for section, content in space.items():
        for fields in content if isinstance(content, list) else [content]:
            for key, value in fields.items() if isinstance(fields, Mapping) else ():
                if isinstance(value, Mapping) and ("log_uniform" in value or len(value.get("uniform", ())) == 2):
                    ranges.add(f"{section}.{key}")
    return ranges


def _order(text: str) -> tuple[bool, float, str]:
    value = json.loads(text)
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, text


def _matching_trials(
    trials: Sequence[_FactorTrial], factor: str, shared: Sequence[str]
) -> list[tuple[Any, dict[str, float]]]:
    """Trials that differ in one factor alone: their seed, and the mean error by the factor's value.

    A setting that one of two methods does not have (a bottleneck has no dimensions) is no difference between them: the
    other method counts with its mean over it. Nor is a width that was solved for a thinner network.
    """
    values_by_field = {name: {trial.fields[factor] for trial in trials if name in trial.fields} for name in shared}
    if factor == METHOD:
        shared = [name for name in shared if len(values_by_field[name]) > 1 or not name.startswith(METHOD_FIELDS)]
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        key = tuple(trial.fields.get(name) for name in shared)
        groups[key, trial.record.specification.get("seed")][trial.fields[factor]].append(trial.error)
    return [(seed, {value: fmean(errors) for value, errors in group.items()}) for (_, seed), group in groups.items()]


def _effect_all_else_equal(
    trials: Sequence[_FactorTrial], factor: str, base: str, other: str, shared: Sequence[str]
) -> PairedEffect | None:
    groups = _matching_trials(trials, factor, shared)
    pairs = [(seed, group[base], group[other]) for seed, group in groups if base in group and other in group]
    if not pairs:
        return None
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for seed, base_error, other_error in pairs:
        by_seed[seed].append(other_error - base_error)
    repeated = len(by_seed) > 1
    values = (
        [fmean(gaps) for gaps in by_seed.values()] if repeated else [gap for gaps in by_seed.values() for gap in gaps]
    )
    return PairedEffect(
        factor=factor, base=_shown(base, factor), other=_shown(other, factor), pairing=ALL_ELSE_EQUAL,
        estimate=t_interval(values), unit="seeds" if repeated else "settings", pairs=len(pairs), seeds=len(by_seed),
        errors=(fmean(base_error for _, base_error, _ in pairs), fmean(other_error for *_, other_error in pairs)),
    )  # fmt: skip


def _best_of_budgets(trials: Sequence[_FactorTrial], factor: str) -> dict[str, dict[str, float]]:
    """Stratum -> value of the factor -> lowest mean error."""
    best: dict[str, dict[str, float]] = defaultdict(dict)
    fields = {trial.record.trial_id: trial.fields for trial in trials}
    for seeds in group_by_point(trial.record for trial in trials):
        value = fields[seeds[0].trial_id].get(factor)
        if value is not None:
            group = best[seeds[0].stratum]
            group[value] = min(mean_error(seeds), group.get(value, float("inf")))
    return best


def _effect_within_budgets(
    trials: Sequence[_FactorTrial], factor: str, base: str, other: str, best: Mapping[str, dict[str, float]]
) -> PairedEffect | None:
    pairs = [(group[base], group[other]) for group in best.values() if base in group and other in group]
    if not pairs:
        return None
    seeds = {trial.record.specification.get("seed") for trial in trials}
    return PairedEffect(
        factor=factor, base=_shown(base, factor), other=_shown(other, factor), pairing=BEST_WITHIN_BUDGET,
        estimate=t_interval([other_error - base_error for base_error, other_error in pairs]), unit="budgets",
        pairs=len(pairs), seeds=len(seeds),
        errors=(fmean(base_error for base_error, _ in pairs), fmean(other_error for _, other_error in pairs)),
    )  # fmt: skip


def _shown(text: str, factor: str) -> str:
    """A value for readers."""
    value = json.loads(text)
    if factor == METHOD:
        return method_label(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return value.replace("_", " ") if isinstance(value, str) else text
