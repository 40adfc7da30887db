"""What one choice changes, all else equal: paired differences of the validation error, with intervals.

Two ways of pairing, because most searches leave few trials that differ in one field alone:

* "all else equal": trials whose settings agree in everything but the factor, seed included. Differences are averaged
  within each seed, and the interval is over seeds; with one seed it is over the settings that were paired.
* "best within each budget": in each stratum of size the best trial of one value against the best of the other. The
  interval is over budgets. Other settings differ, and the values may have been tried unequally often.

Only trials that trained to their end take part. A difference is `other` minus `base` in points of error: negative means
that `other` is better.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from analysis.estimates import Estimate, t_interval
from analysis.front import searched
from sweeps.records import StudyRecord, TrialRecord

EQUAL, BEST = "all else equal", "best within each budget"
MOST_VALUES = 9  # a factor with more is continuous: importance and the heat map show it
SEEDS = ("seed", "search.seed", "train.seed")
BUDGET = "budget."


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One value of a factor against another; `estimate` is over so many units ("seeds", "settings" or "budgets")."""

    factor: str
    base: str
    other: str
    pairing: str
    estimate: Estimate
    unit: str
    pairs: int
    seeds: int

    def verdict(self) -> str:
        """In a word or two: `better`, `worse`, `within noise`, or why nothing can be said."""
        if self.estimate.beyond_noise is None:
            return f"one {self.unit.removesuffix('s')}: no interval"
        if not self.estimate.beyond_noise:
            return "within noise"
        return "better" if self.estimate.mean < 0 else "worse"


def ablation(study: StudyRecord) -> list[Effect]:
    """Every pair of values of every searched factor that has at most MOST_VALUES of them, exact pairs first."""
    trials = searched(study)
    found = []
    for factor in factors(study, trials):
        values = sorted({_value(t.parameters[factor]) for t in trials if factor in t.parameters}, key=_order)
        alike = _alike(trials, factor)
        for base, other in combinations(values, 2):
            found += [e for e in (_equal(alike, factor, base, other), _best(trials, factor, base, other)) if e]
    return sorted(found, key=lambda effect: (effect.pairing != EQUAL, effect.factor))


def factors(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """The searched fields with two to MOST_VALUES values; seeds, and fields that were drawn from a range, are left out.

    Where the records do not hold the space, a field counts as drawn from a range if no value of it came twice.
    """
    values: dict[str, list[str]] = defaultdict(list)
    for trial in trials:
        for name, value in trial.parameters.items():
            values[name].append(_value(value))
    ranges = _ranges(study.header.get("space") or {})
    found = []
    for name, all_values in values.items():
        distinct = set(all_values)
        drawn = name in ranges if ranges is not None else len(distinct) == len(all_values)
        if name not in SEEDS and not drawn and 2 <= len(distinct) <= MOST_VALUES:
            found.append(name)
    return sorted(found)


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


def _value(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _order(text: str) -> tuple[bool, float, str]:
    value = json.loads(text)
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, text


def _rest(trial: TrialRecord, factor: str) -> str:
    """All that two trials of a pair must share; data, network and length are named, since tables may be collated."""
    spec = trial.specification
    shared = {
        "data": spec.get("data", {}).get("fingerprint"), "network": spec.get("network", {}).get("name"),
        "epochs": None if factor == "train.epochs" else spec.get("train", {}).get("epochs"),
        "parameters": {k: v for k, v in trial.parameters.items() if k != factor and k not in SEEDS},
    }  # fmt: skip
    return json.dumps(shared, sort_keys=True)


def _error(trial: TrialRecord) -> float:
    assert trial.val_error is not None
    return trial.val_error


def _alike(trials: Sequence[TrialRecord], factor: str) -> list[tuple[Any, dict[str, float]]]:
    """Groups of trials that differ in the factor alone: their seed, and their errors by the factor's value."""
    groups: dict[tuple[str, Any], dict[str, float]] = defaultdict(dict)
    for trial in trials:
        if factor in trial.parameters:
            key = (_rest(trial, factor), trial.specification.get("seed"))
            groups[key][_value(trial.parameters[factor])] = _error(trial)
    return [(seed, group) for (_, seed), group in groups.items()]


def _equal(alike: Sequence[tuple[Any, dict[str, float]]], factor: str, base: str, other: str) -> Effect | None:
    pairs = [(seed, group[other] - group[base]) for seed, group in alike if base in group and other in group]
    if not pairs:
        return None
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for seed, gap in pairs:
        by_seed[seed].append(gap)
    repeated = len(by_seed) > 1
    values = [sum(gaps) / len(gaps) for gaps in by_seed.values()] if repeated else [gap for _, gap in pairs]
    return Effect(
        factor=factor, base=_shown(base), other=_shown(other), pairing=EQUAL, estimate=t_interval(values),
        unit="seeds" if repeated else "settings", pairs=len(pairs), seeds=len(by_seed),
    )  # fmt: skip


def _best(trials: Sequence[TrialRecord], factor: str, base: str, other: str) -> Effect | None:
    if factor.startswith(BUDGET):
        return None  # the budget is the stratum
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for trial in trials:
        if factor in trial.parameters:
            group, value = best[trial.stratum], _value(trial.parameters[factor])
            group[value] = min(_error(trial), group.get(value, float("inf")))
    gaps = [group[other] - group[base] for group in best.values() if base in group and other in group]
    if not gaps:
        return None
    seeds = {trial.specification.get("seed") for trial in trials}
    return Effect(
        factor=factor, base=_shown(base), other=_shown(other), pairing=BEST, estimate=t_interval(gaps),
        unit="budgets", pairs=len(gaps), seeds=len(seeds),
    )  # fmt: skip


def _shown(text: str) -> str:
    value = json.loads(text)
    if isinstance(value, float):
        return f"{value:.3g}"
    return value.replace("_", " ") if isinstance(value, str) else text
