"""The values of a trial's factors: every field in which trials can differ, except those that follow from others.

Factors are taken from the specification, not from the searched fields alone: studies that were put together differ in
fields that neither of them searched. Left out are paths, the seed, and what follows from another value: a size that was
solved from the budget, the augmentation that follows from data and recipe, the layers that a teacher is compared at,
the decay of factors in its other spelling.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.records import TrialRecord, start_kind

METHOD, BUDGET, RECIPE = "method.name", "budget.", "train.recipe"
SEEDS = frozenset({"seed", "search.seed", "train.seed"})
DISTILLATION_WEIGHTS = frozenset({"train.attention_weight", "train.kd_weight"})
DECAYS = ("train.decay", "train.scaled_decay")  # two spellings of one setting
START, WEIGHTS = "start.how", "start.weights"
SHAPE_FIELD = "method.dims"  # a number of a method that is a choice even where its size was solved
SOLVED_COUNT = "budget_gap"  # among the counts: the size was solved from a budget
TEACHER_FIELDS = ("name", "weights", "views")
THIN_PREFIX = "thin_"

FactorValues = dict[str, str]  # dotted name as in a space file -> value as JSON


def factor_values(trial: TrialRecord) -> FactorValues:
    """Return the values of a trial's factors.

    Args:
        trial: the record.

    Returns:
        Dotted name as in a space file -> value as JSON; unset fields are left out.
    """
    spec, solved = trial.specification, SOLVED_COUNT in trial.counts
    sections = spec.to_json() if spec else {}
    values: dict[str, object] = {name: value for name, value in trial.parameters.items() if not _is_seed(name)}
    values |= _section("network", sections) | _section("train", sections) | _method(trial, sections, solved)
    if solved and not any(name.startswith(BUDGET) for name in trial.parameters):
        values["budget"] = trial.stratum
    if solved and trial.method.startswith(THIN_PREFIX):
        values.pop("network.width", None)
    values["budget.allocation"] = spec.allocation.by if spec and spec.allocation else "even"
    values.pop(DECAYS[0] if DECAYS[1] in trial.parameters else DECAYS[1], None)
    values |= {START: start_kind(spec), WEIGHTS: spec.start.fingerprint if spec and spec.start else None}
    values["data"] = spec.data.fingerprint if spec else None
    if spec and spec.teacher:
        values |= {f"teacher.{name}": getattr(spec.teacher, name) for name in TEACHER_FIELDS}
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items() if value is not None}


def _is_seed(name: str) -> bool:
    return name in SEEDS or name == "alternative"


def _section(name: str, sections: Mapping[str, Any]) -> dict[str, object]:
    fields = {f"{name}.{key}": value for key, value in sections.get(name, {}).items()}
    return {key: value for key, value in fields.items() if not _is_seed(key)}


def _method(trial: TrialRecord, sections: Mapping[str, Any], solved: bool) -> dict[str, object]:
    """The method under the name that the space uses; the numbers that are the size of a solved one are left out.

    Shared fields that the method does not have, and that so changed nothing, are unset.
    """
    settings = _section("method", sections)
    shared = {
        name: None for name in trial.parameters if name.startswith("method.") and settings and name not in settings
    }
    size = {
        name: None for name, value in settings.items()
        if solved and isinstance(value, int | float) and name != SHAPE_FIELD and name not in trial.parameters
    }  # fmt: skip
    return {**settings, **shared, **size, METHOD: trial.method or None}


def varying_factors(trials: Sequence[FactorValues]) -> list[str]:
    """Return the factors in which not all trials agree.

    A field of a method varies only where one method has several values: a value that always comes with a method is part
    of it.

    Args:
        trials: the factor values of each trial.

    Returns:
        Names in alphabetical order.
    """
    names = sorted({name for trial in trials for name in trial})
    return [name for name in names if len({trial.get(name) for trial in trials}) > 1 and not _of_method(name, trials)]


def _of_method(name: str, trials: Sequence[FactorValues]) -> bool:
    if not name.startswith("method.") or name == METHOD:
        return False
    values: dict[str, set[str | None]] = defaultdict(set)
    for trial in trials:
        values[trial.get(METHOD, "")].add(trial.get(name))
    return all(len(distinct) == 1 for distinct in values.values())


def shared_factors(factor: str, names: Sequence[str], searched: frozenset[str]) -> list[str]:
    """Return the factors that two trials must share in order to differ in one factor alone.

    What follows from a value is no second difference: a teacher comes with the first weight above 0, weights with a
    start from them, fields of a recipe with the recipe.

    Args:
        factor: the one in which they differ.
        names: all varying factors.
        searched: those that the space searched.

    Returns:
        Names, in the order of `names`.
    """
    if factor in DISTILLATION_WEIGHTS:
        return [name for name in names if name != factor and not name.startswith("teacher.")]
    if factor in DECAYS:
        return [name for name in names if name not in DECAYS]
    if factor == START:
        return [name for name in names if name not in (factor, WEIGHTS)]
    if factor == RECIPE:
        return [name for name in names if name != factor and (name in searched or not name.startswith("train."))]
    return [name for name in names if name != factor]
