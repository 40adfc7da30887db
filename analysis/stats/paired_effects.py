"""What one choice changes, all else equal: paired differences of the validation error, with intervals.

Two ways of pairing, because most searches leave few trials that differ in one thing alone:

* "all else equal": trials that differ in exactly one choice (analysis.stats.factors), seed included. Differences are
  averaged within each seed, and the interval is over seeds; with one seed it is over the settings that were paired.
* "best within each budget": of a searched field, in each stratum of size the best setting of one value against the best
  of the other, each by its mean error over seeds. The interval is over budgets. Other settings differ, and the values
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
from analysis.utils.formatting import method_label
from sweeps.records.fronts import group_by_point, mean_error
from sweeps.records.model import StudyRecord, TrialRecord

ALL_ELSE_EQUAL, BEST_WITHIN_BUDGET = "all else equal", "best within each budget"
METHOD_FIELDS = ("method.", "network.width")
MAX_VALUES = 9  # a number with more is continuous: importance and the heat map show it
MAX_NAMES = 16  # e.g. methods


@dataclass(frozen=True, kw_only=True)
class PairedEffect:
    """One value of a factor against another; `estimate` is over so many units ("seeds", "settings" or "budgets")."""

    factor: str
    base: str
    other: str
    pairing: str
    estimate: Estimate
    unit: str
    pairs: int
    seeds: int
    errors: tuple[float, float]  # of base and other, in percent, means over the pairs
    images: int | None = None  # on which each was measured

    def verdict(self) -> str:
        """In a few words: `better`, `worse`, `within noise`, or why nothing can be said.

        An interval over seeds or settings knows nothing of the images, which are the same for all: with few of them
        errors lie on a coarse grid, and two differences may even be equal.
        """
        if self.estimate.beyond_noise is None:
            return f"one {self.unit.removesuffix('s')}: no interval"
        if not self.estimate.beyond_noise:
            return "within noise"
        side = "better" if self.estimate.mean < 0 else "worse"
        few = self.images is not None and within_image_noise(*self.errors, self.images)
        return f"{side}, but within the noise of the images" if few else side


@dataclass(frozen=True)
class _Chosen:
    """A finished trial, and what was chosen for it."""

    trial: TrialRecord
    fields: FactorValues

    @property
    def error(self) -> float:
        return mean_error([self.trial])


def find_paired_effects(study: StudyRecord) -> list[PairedEffect]:
    """Every pair of values of every choice that has few enough of them, exact pairs first."""
    known = [_Chosen(trial, factor_values(trial)) for trial in searched_trials(study)]
    names = varying_factors([each.fields for each in known])
    asked = frozenset(name for each in known for name in each.trial.parameters)
    found, images = [], validation_images(study)
    for factor in _factors(study, known, names):
        values = sorted({each.fields[factor] for each in known if factor in each.fields}, key=_order)
        rest = shared_factors(factor, names, asked)
        best = _best_of_budgets(known, factor) if factor in asked and not factor.startswith(BUDGET) else {}
        for base, other in combinations(values, 2):
            pair = [each for each in known if each.fields.get(factor) in (base, other)]
            effect = _equal(pair, factor, base, other, rest) or _best(pair, factor, base, other, best)
            found += [replace(effect, images=images)] if effect else []
    return sorted(found, key=lambda effect: (effect.pairing != ALL_ELSE_EQUAL, effect.factor))


def _factors(study: StudyRecord, known: Sequence[_Chosen], names: Sequence[str]) -> list[str]:
    """The choices with two values or more, but not too many; fields that were drawn from a range are left out.

    Where the records do not hold the space, a field counts as drawn from a range if no value of it came twice and they
    are no whole numbers.
    """
    ranges = _ranges(study.header.get("space") or {})
    found = []
    for name in names:
        values = [each.fields[name] for each in known if name in each.fields]
        distinct = set(values)
        drawn = name in ranges if ranges is not None else len(distinct) == len(values) and _are_reals(distinct)
        most = MAX_NAMES if all(value.startswith('"') for value in distinct) else MAX_VALUES
        if not drawn and 2 <= len(distinct) <= most:
            found.append(name)
    return found


def _are_reals(values: Iterable[str]) -> bool:
    found = [json.loads(value) for value in values]
    return all(isinstance(value, float) for value in found) and not all(value.is_integer() for value in found)


def _ranges(space: Mapping[str, Any]) -> set[str] | None:
    """Names of the space's fields that are drawn from a range of real numbers; None without a space."""
    if not any(isinstance(space.get(section), Mapping | list) for section in ("train", "method")):
        return None
    found = set()
    for section, content in space.items():
        for fields in content if isinstance(content, list) else [content]:
            for key, value in fields.items() if isinstance(fields, Mapping) else ():
                if isinstance(value, Mapping) and ("log_uniform" in value or len(value.get("uniform", ())) == 2):
                    found.add(f"{section}.{key}")
    return found


def _order(text: str) -> tuple[bool, float, str]:
    value = json.loads(text)
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, text


def _alike(pair: Sequence[_Chosen], factor: str, rest: Sequence[str]) -> list[tuple[Any, dict[str, float]]]:
    """Trials that differ in a factor alone: their seed, and the mean error by the factor's value.

    A setting that one of two methods has not got (a bottleneck has no dimensions) is no difference between them: the
    other method counts by its mean over it; so is a width that was solved for a thinner network.
    """
    having = {name: {each.fields[factor] for each in pair if name in each.fields} for name in rest}
    if factor == METHOD:
        rest = [name for name in rest if len(having[name]) > 1 or not name.startswith(METHOD_FIELDS)]
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in pair:
        shared = tuple(each.fields.get(name) for name in rest)
        groups[shared, each.trial.specification.get("seed")][each.fields[factor]].append(each.error)
    return [(seed, {value: fmean(errors) for value, errors in group.items()}) for (_, seed), group in groups.items()]


def _equal(pair: Sequence[_Chosen], factor: str, base: str, other: str, rest: Sequence[str]) -> PairedEffect | None:
    alike = _alike(pair, factor, rest)
    pairs = [(seed, group[base], group[other]) for seed, group in alike if base in group and other in group]
    if not pairs:
        return None
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for seed, left, right in pairs:
        by_seed[seed].append(right - left)
    repeated = len(by_seed) > 1
    values = [fmean(gaps) for gaps in by_seed.values()] if repeated else [right - left for _, left, right in pairs]
    return PairedEffect(
        factor=factor, base=_shown(base, factor), other=_shown(other, factor), pairing=ALL_ELSE_EQUAL,
        estimate=t_interval(values), unit="seeds" if repeated else "settings", pairs=len(pairs), seeds=len(by_seed),
        errors=(fmean(left for _, left, _ in pairs), fmean(right for *_, right in pairs)),
    )  # fmt: skip


def _best_of_budgets(known: Sequence[_Chosen], factor: str) -> dict[str, dict[str, float]]:
    """For each stratum the lowest mean error of each value."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    fields = {each.trial.trial_id: each.fields for each in known}
    for seeds in group_by_point(each.trial for each in known):
        value = fields[seeds[0].trial_id].get(factor)
        if value is not None:
            group = found[seeds[0].stratum]
            group[value] = min(mean_error(seeds), group.get(value, float("inf")))
    return found


def _best(
    pair: Sequence[_Chosen], factor: str, base: str, other: str, best: Mapping[str, dict[str, float]]
) -> PairedEffect | None:
    pairs = [(group[base], group[other]) for group in best.values() if base in group and other in group]
    if not pairs:
        return None
    seeds = {each.trial.specification.get("seed") for each in pair}
    return PairedEffect(
        factor=factor, base=_shown(base, factor), other=_shown(other, factor), pairing=BEST_WITHIN_BUDGET,
        estimate=t_interval([right - left for left, right in pairs]), unit="budgets", pairs=len(pairs),
        seeds=len(seeds), errors=(fmean(left for left, _ in pairs), fmean(right for _, right in pairs)),
    )  # fmt: skip


def _shown(text: str, factor: str) -> str:
    """A value for readers."""
    value = json.loads(text)
    if factor == METHOD:
        return method_label(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return value.replace("_", " ") if isinstance(value, str) else text
