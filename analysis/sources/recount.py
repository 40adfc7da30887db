"""Counts a trial's network again from its specification alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.compression import SizedMethod, plan_sized_network
from lowrank.data import BUILTIN_SETS, BuiltinSet
from lowrank.errors import InputError, LowrankError
from lowrank.layers import Dense, Separable
from lowrank.networks import NetworkSettings, is_own_code
from lowrank.utils import first_line
from sweeps.records import TrialRecord, specification_networks


class NotOnRecordError(LowrankError):
    """A record lacks what a recount needs; the message says what."""


def recount(trial: TrialRecord, data: Mapping[str, Any], *, allow_code: bool = False) -> dict[str, int]:
    """Count a trial's network from its specification alone.

    Args:
        trial: the record.
        data: the section `data` of the study's header.
        allow_code: whether its network may be a function of the user's code; it is imported.

    Returns:
        Parameters and mult-adds of the trial and of its dense and separable forms, by the names of the records.

    Raises:
        InputError: the specification names what this version does not have.
        NotOnRecordError: there is no specification, its network is code that is not allowed, or shape and number of
            classes of the images are not known. Older records do not have them; of a built-in data set they are known.
    """
    spec = trial.specification
    if not spec:
        raise NotOnRecordError("no specification on record")
    code = [name for name in specification_networks(spec) if is_own_code(name)]
    if code and not allow_code:
        raise NotOnRecordError(f"the network {code[0]!r} is code; --allow-code runs it, if you trust who wrote it")
    shape = _shape(trial, data)
    builtin = _builtin_set(trial)
    classes = data.get("classes") or (builtin.classes if builtin else None)
    if shape is None or not classes:
        what = "shape" if shape is None else "number of classes"
        raise NotOnRecordError(f"the {what} of the images of {spec.get('data', {}).get('name')} is not on record")
    try:
        settings = NetworkSettings(**spec["network"])
        plan, sized = plan_sized_network(
            settings, spec["method"], shape, int(classes), allocation=spec.get("allocation")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(first_line(error)) from error
    forms: dict[str, SizedMethod] = {"": sized, "dense_": Dense(), "separable_": Separable()}
    counts = {f"{prefix}params": plan.params(form) for prefix, form in forms.items()}
    return counts | {f"{prefix}mult_adds": plan.mult_adds(form) for prefix, form in forms.items()}


def _builtin_set(trial: TrialRecord) -> BuiltinSet | None:
    return BUILTIN_SETS.get(str(trial.specification.get("data", {}).get("name")))


def _shape(trial: TrialRecord, data: Mapping[str, Any]) -> tuple[int, int, int] | None:
    builtin = _builtin_set(trial)
    shape = data.get("image_shape") or (builtin.image_shape if builtin else None)
    return (int(shape[0]), int(shape[1]), int(shape[2])) if shape else None
