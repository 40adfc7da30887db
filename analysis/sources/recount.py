"""Counts a trial's network again from its specification alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.trace import network_plan
from lowrank.errors import InputError, LowrankError
from lowrank.layers import Dense, Separable
from lowrank.networks.registry import NetworkSettings
from sweeps.records.model import TrialRecord


class NotOnRecordError(LowrankError):
    """A record lacks what a recount needs, and so is neither right nor wrong; the text says what."""


def recount(trial: TrialRecord, data: Mapping[str, Any]) -> dict[str, int]:
    """The trial's counts by the records' names; `data` is the study header's section of that name.

    Raises:
        InputError: the specification names what this version does not have.
        NotOnRecordError: there is no specification, or the shape of the images or the number of classes is not known
            (older headers and tables do not tell it, and only published sets have one that everybody knows).
    """
    spec = trial.specification
    if not spec:
        raise NotOnRecordError("no specification on record")
    shape = _shape(trial, data)
    classes = data.get("classes") or _published(trial).get("classes")
    if shape is None or not classes:
        what = "shape" if shape is None else "number of classes"
        raise NotOnRecordError(f"the {what} of the images of {spec.get('data', {}).get('name')} is not on record")
    try:
        plan = network_plan(NetworkSettings(**spec["network"]), shape, int(classes))
        sized = plan.sized(spec["method"], spec.get("allocation"))
    except (KeyError, ValueError) as error:
        raise InputError((str(error).splitlines() or [type(error).__name__])[0]) from error
    forms: dict[str, SizedMethod] = {"": sized, "dense_": Dense(), "separable_": Separable()}
    counts = {f"{prefix}params": plan.params(form) for prefix, form in forms.items()}
    return counts | {f"{prefix}mult_adds": plan.mult_adds(form) for prefix, form in forms.items()}


_PUBLISHED: dict[str, dict[str, Any]] = {
    "digits": {"image_shape": (1, 8, 8), "classes": 10}, "cifar10": {"image_shape": (3, 32, 32), "classes": 10},
    "cifar100": {"image_shape": (3, 32, 32), "classes": 100},
    "fashion_mnist": {"image_shape": (1, 28, 28), "classes": 10},
}  # fmt: skip


def _published(trial: TrialRecord) -> dict[str, Any]:
    """What is known of the images of a published set without looking at them."""
    return _PUBLISHED.get(str(trial.specification.get("data", {}).get("name")), {})


def _shape(trial: TrialRecord, data: Mapping[str, Any]) -> tuple[int, int, int] | None:
    found = data.get("image_shape") or _published(trial).get("image_shape")
    return (int(found[0]), int(found[1]), int(found[2])) if found else None
