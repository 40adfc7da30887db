"""What was chosen for a trial, field by field: all that sets it apart from another, less what follows from the rest.

Taken from the specification, not from the searched fields alone: studies that were put together differ in fields that
neither of them searched. Left out are what only says where things lie, the seed, and what a choice brings with it: a
size that was solved from the budget, the views that follow from data and recipe, the taps of a teacher, the decay of
factors in its other spelling.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.records.model import TrialRecord

METHOD, BUDGET, RECIPE = "method.name", "budget.", "train.recipe"
SEEDS = frozenset({"seed", "search.seed", "train.seed"})
DISTILLATION_WEIGHTS = frozenset({"train.attention_weight", "train.kd_weight"})
DECAYS = ("train.decay", "train.scaled_decay")  # the second is the first in one word
START, WEIGHTS = "start.how", "start.weights"
SHAPE_FIELD = "method.dims"  # a number of a method that is a choice even where its size was solved
SOLVED_COUNT = "budget_gap"  # among the counts: the size was solved from a budget
TEACHER_FIELDS = ("name", "weights", "views")
THIN_PREFIX = "thin_"

FactorValues = dict[str, str]  # dotted name as in a space file -> value as JSON


def factor_values(trial: TrialRecord) -> FactorValues:
    """The trial's fields by dotted name, each as JSON; what is unset is left out."""
    spec, solved = trial.specification, SOLVED_COUNT in trial.counts
    found: dict[str, Any] = {name: value for name, value in trial.parameters.items() if not _is_seed(name)}
    found |= _section("network", spec) | _section("train", spec) | _method(trial, solved)
    if solved and not any(name.startswith(BUDGET) for name in trial.parameters):
        found["budget"] = trial.stratum
    if solved and trial.method.startswith(THIN_PREFIX):
        found.pop("network.width", None)
    found["budget.allocation"] = (spec.get("allocation") or {}).get("by", "even")
    found.pop(DECAYS[0] if DECAYS[1] in trial.parameters else DECAYS[1], None)
    found |= {START: "dense" if "start" in spec else "scratch", WEIGHTS: (spec.get("start") or {}).get("fingerprint")}
    found["data"] = (spec.get("data") or {}).get("fingerprint")
    teacher = spec.get("teacher") or {}
    found |= {f"teacher.{name}": teacher.get(name) for name in TEACHER_FIELDS}
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items() if value is not None}


def _is_seed(name: str) -> bool:
    return name in SEEDS or name == "alternative"


def _section(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    fields = {f"{name}.{key}": value for key, value in (spec.get(name) or {}).items()}
    return {key: value for key, value in fields.items() if not _is_seed(key)}


def _method(trial: TrialRecord, solved: bool) -> dict[str, Any]:
    """The method under the name that the space gives it; of a solved one the numbers that are its size are left out.

    Shared fields that the method has not got, and that so changed nothing, are unset.
    """
    own = _section("method", trial.specification)
    shared = {name: None for name in trial.parameters if name.startswith("method.") and own and name not in own}
    size = {
        name: None for name, value in own.items()
        if solved and isinstance(value, int | float) and name != SHAPE_FIELD and name not in trial.parameters
    }  # fmt: skip
    return {**own, **shared, **size, METHOD: trial.method or None}


def varying_factors(found: Sequence[FactorValues]) -> list[str]:
    """Names of the fields in which not all trials agree, in alphabetical order.

    A setting of a method varies only where one method has several: what always comes with a method is part of it.
    """
    names = sorted({name for each in found for name in each})
    return [name for name in names if len({each.get(name) for each in found}) > 1 and not _of_method(name, found)]


def _of_method(name: str, found: Sequence[FactorValues]) -> bool:
    if not name.startswith("method.") or name == METHOD:
        return False
    values: dict[str, set[str | None]] = defaultdict(set)
    for each in found:
        values[each.get(METHOD, "")].add(each.get(name))
    return all(len(own) == 1 for own in values.values())


def shared_factors(factor: str, names: Sequence[str], searched: frozenset[str]) -> list[str]:
    """Of the varying fields `names` those that two trials must share to differ in `factor` alone.

    What a choice brings with it is no second difference: a teacher comes with the first weight above 0, weights with a
    start from them, its fields with a recipe.
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
