"""What the value of one factor changes, all else equal: paired differences of the validation error, with intervals.

Two ways of pairing, because most searches have few trials that differ in one factor alone:

* "all else equal": trials that differ in exactly one factor (analysis.stats.factors), seed included. Differences are
  averaged within each seed over the settings that have all seeds, and the interval is over seeds. With one seed, or
  where few settings have all, it is over the settings that were paired in the first seed.
* "best within each budget": of a searched field, in each stratum of size the best setting of one value against the best
  of the other, each by its mean error over seeds. The interval is over budgets. Other factors differ, and the values
  may have been tried unequally often: it is shown only where no two trials make an exact pair.

All effects of a study are shown together, so their p-values are corrected for their number (Holm): with nothing true,
the chance that any is called better or worse is at most 5 %. Where the records say which images were wrong, seeds and
images are both random (`inference.paired`); else an effect must stand out from the seeds and from the images.

A method with settings that another lacks (a bottleneck has no dimensions) has several trials for its one: these differ
in more than the method, and are no exact pair.

Only trials that trained to their end take part. A difference is `other` minus `base` in points of error: negative means
that `other` is better.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.stats.factors import BUDGET, METHOD, FactorValues, factor_values, shared_factors, varying_factors
from analysis.stats.front import searched_trials, validation_images
from analysis.stats.inference.intervals import LEVEL, Estimate, image_p_value, t_interval, t_test_p_value
from analysis.stats.inference.multiple import count_compared, describe_verdict, holm_p_values
from analysis.stats.inference.paired import mean_variance, two_sided_p_value
from analysis.utils import method_label
from sweeps.records import StudyRecord, TrialRecord, group_by_point, mean_error, wrong_images

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
        p_value: of "no difference"; None without an interval.
        corrected: the same, corrected for the number of effects that are shown together.
        comparisons: how many these are.
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
    p_value: float | None = None
    corrected: float | None = None
    comparisons: int = 1

    def verdict(self) -> str:
        """Return the effect in a few words: `better`, `worse`, `within noise`, or why there is no interval.

        Without a record of the wrong images an interval over seeds or settings does not include the noise of the
        images, which are the same for all: with few of them errors lie on a coarse grid, and two differences may even
        be equal.
        """
        no_interval = f"one {self.unit.removesuffix('s')}: no interval"
        return describe_verdict(self.estimate, self.p_value, self.corrected, self.comparisons, no_interval)


@dataclass(frozen=True)
class _FactorTrial:
    """A finished trial with the values of its factors."""

    record: TrialRecord
    fields: FactorValues
    wrong: NDArray[np.bool_] | None = None  # which validation images, where that is on record

    @property
    def error(self) -> float:
        return mean_error([self.record])


def find_paired_effects(study: StudyRecord) -> list[PairedEffect]:
    """Compare every pair of values of every factor that has few enough of them.

    Args:
        study: the records.

    Returns:
        The effects, exact pairs first, of these the strongest first.
    """
    trials = [
        _FactorTrial(trial, factor_values(trial), wrong_images(study, trial.trial_id, "val"))
        for trial in searched_trials(study)
    ]
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
            effects += [_with_p_value(replace(effect, images=images))] if effect else []
    return sorted(_corrected(effects), key=_by_strength)


def _with_p_value(effect: PairedEffect) -> PairedEffect:
    """Add the p-value where the effect has none of its images: the larger of that over units and that over images."""
    if effect.p_value is not None or effect.estimate.beyond_noise is None:
        return effect
    p_value = t_test_p_value(effect.estimate)
    if effect.images is not None:
        p_value = max(p_value, image_p_value(*effect.errors, effect.images))
    return replace(effect, p_value=p_value)


def _corrected(effects: Sequence[PairedEffect]) -> list[PairedEffect]:
    corrected = holm_p_values([effect.p_value for effect in effects])
    count = count_compared(corrected)
    return [
        replace(effect, corrected=p_value, comparisons=count)
        for effect, p_value in zip(effects, corrected, strict=True)
    ]


def _by_strength(effect: PairedEffect) -> tuple[bool, float, float, str]:
    return effect.pairing != ALL_ELSE_EQUAL, _or_one(effect.p_value), -abs(effect.estimate.mean), effect.factor


def _or_one(p_value: float | None) -> float:
    return 1.0 if p_value is None else p_value


def _factors(study: StudyRecord, trials: Sequence[_FactorTrial], names: Sequence[str]) -> list[str]:
    """The factors with two values or more, but not too many; fields that were drawn from a range are left out.

    Where the records do not hold the space, a field counts as drawn from a range if no value of it came twice and they
    are no whole numbers.
    """
    ranges = _ranges(study.header.space)
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
) -> list[tuple[tuple[Any, ...], Any, dict[str, _FactorTrial]]]:
    """Trials that differ in one factor alone: what they share, their seed, and the trial of each of its values.

    A width that was solved for a thinner network is no second difference. Values of which several trials remain differ
    in more than the factor, and make no pair.
    """
    values_by_field = {name: {trial.fields[factor] for trial in trials if name in trial.fields} for name in shared}
    if factor == METHOD:
        shared = [name for name in shared if len(values_by_field[name]) > 1 or not name.startswith(METHOD_FIELDS)]
    groups: dict[tuple[Any, Any], dict[str, list[_FactorTrial]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        key = tuple(trial.fields.get(name) for name in shared)
        groups[key, trial.record.seed][trial.fields[factor]].append(trial)
    return [
        (key, seed, {value: several[0] for value, several in group.items() if len(several) == 1})
        for (key, seed), group in groups.items()
    ]


def _effect_all_else_equal(
    trials: Sequence[_FactorTrial], factor: str, base: str, other: str, shared: Sequence[str]
) -> PairedEffect | None:
    groups = _matching_trials(trials, factor, shared)
    pairs = [(key, seed, group[base], group[other]) for key, seed, group in groups if base in group and other in group]
    if not pairs:
        return None
    by_seed = _balanced(pairs)
    repeated = len(by_seed) > 1
    used = [pair for pairs_of_seed in by_seed.values() for pair in pairs_of_seed]
    units = list(by_seed.values()) if repeated else [[pair] for pair in used]
    estimate, p_value = _estimate(units)
    return PairedEffect(
        factor=factor, base=_shown(base, factor), other=_shown(other, factor), pairing=ALL_ELSE_EQUAL,
        estimate=estimate, unit="seeds" if repeated else "settings", pairs=len(used), seeds=len(by_seed),
        errors=(fmean(first.error for first, _ in used), fmean(second.error for _, second in used)), p_value=p_value,
    )  # fmt: skip


_Pair = tuple[_FactorTrial, _FactorTrial]  # of the base and of the other value


def _balanced(pairs: Sequence[tuple[tuple[Any, ...], Any, _FactorTrial, _FactorTrial]]) -> dict[Any, list[_Pair]]:
    """The pairs by seed, of settings that have every seed; of the first seed alone where these are under half.

    A seed with the settings of the front only would weigh as much as one with all, and its settings are chosen ones.
    """
    seeds = list(dict.fromkeys(seed for _, seed, _, _ in pairs))
    by_setting: dict[tuple[Any, ...], dict[Any, _Pair]] = defaultdict(dict)
    for key, seed, base, other in pairs:
        by_setting[key][seed] = (base, other)
    complete = [by_this_seed for by_this_seed in by_setting.values() if len(by_this_seed) == len(seeds)]
    if 2 * len(complete) >= len(by_setting):
        return {seed: [by_this_seed[seed] for by_this_seed in complete] for seed in seeds}
    first = max(seeds, key=lambda seed: sum(seed in by_this_seed for by_this_seed in by_setting.values()))
    return {first: [by_this_seed[first] for by_this_seed in by_setting.values() if first in by_this_seed]}


def _estimate(units: Sequence[Sequence[_Pair]]) -> tuple[Estimate, float | None]:
    """The mean difference over units; with its p-value where the wrong images of all trials are on record."""
    over_units = t_interval([fmean(other.error - base.error for base, other in unit) for unit in units])
    rows = [[_gap(*pair) for pair in unit] for unit in units]
    gaps = [gap for row in rows for gap in row if gap is not None]
    if len(units) < 2 or len(gaps) < sum(map(len, rows)) or len({len(gap) for gap in gaps}) > 1:
        return over_units, None
    values = np.stack([np.mean([gap for gap in row if gap is not None], axis=0) for row in rows])
    moments = mean_variance(values)
    half = 100 * moments.quantile(LEVEL) * math.sqrt(moments.variance)
    mean = 100 * moments.mean
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=len(units)), two_sided_p_value(moments)


def _gap(base: _FactorTrial, other: _FactorTrial) -> NDArray[np.float64] | None:
    if base.wrong is None or other.wrong is None or base.wrong.shape != other.wrong.shape:
        return None
    return other.wrong.astype(np.float64) - base.wrong.astype(np.float64)


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
    seeds = {trial.record.seed for trial in trials}
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
