"""Counts a trial's network again from its specification alone."""

from __future__ import annotations

from lowrank.compression import NetworkPlan, SizedMethod, network_plan
from lowrank.data import BUILTIN_SETS
from lowrank.errors import LowrankError
from lowrank.layers import VARIATIONAL_METHODS, Dense, Separable
from lowrank.networks import is_own_code
from sweeps.records import HeaderData, TrialRecord


class NotOnRecordError(LowrankError):
    """A record lacks what a recount needs; the message says what."""


def recount(trial: TrialRecord, data: HeaderData, *, allow_code: bool = False) -> dict[str, int]:
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
    code = [name for name in spec.networks() if is_own_code(name)]
    if code and not allow_code:
        raise NotOnRecordError(f"the network {code[0]!r} is code; --allow-code runs it, if you trust who wrote it")
    builtin = BUILTIN_SETS.get(spec.data.name)
    shape = data.image_shape or (builtin.image_shape if builtin else None)
    classes = data.classes or (builtin.classes if builtin else None)
    if shape is None or not classes:
        what = "shape" if shape is None else "number of classes"
        raise NotOnRecordError(f"the {what} of the images of {spec.data.name} is not on record")
    if spec.method.name in VARIATIONAL_METHODS and (not trial.removed or trial.removed.get("masked")):
        what = "its groups are only masked" if trial.removed else "its sizes follow from a training that has not ended"
        raise NotOnRecordError(f"{what}, so that the specification alone does not count its network")
    model = spec.built(trial.removed).model(shape, classes)
    built, full = model.plan(), network_plan(spec.network, shape, classes)
    forms: list[tuple[str, NetworkPlan, SizedMethod]] = [
        ("", built, model.sized(built)), ("dense_", full, Dense()), ("separable_", full, Separable())
    ]  # fmt: skip
    counts = {f"{prefix}params": plan.params(form) for prefix, plan, form in forms}
    return counts | {f"{prefix}mult_adds": plan.mult_adds(form) for prefix, plan, form in forms}
