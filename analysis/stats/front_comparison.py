"""The fronts of several studies side by side: hypervolume against one reference point at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.stats.front import FrontPoint, collect_points, pareto_front
from analysis.stats.hypervolume import HypervolumeGrowth, ReferencePoint, chance_reference_point, hypervolume_growth
from lowrank.errors import InputError
from sweeps.records import StudyRecord, completed_trials

COST_UNITS = ("seconds", "epochs")


@dataclass(frozen=True, kw_only=True)
class FrontComparison:
    """The fronts of studies, and how their hypervolumes grew.

    Attributes:
        names: of the studies.
        reference: the point that bounds every hypervolume.
        unit: of cost, one of `COST_UNITS`.
        equal_cost: what the cheapest study spent on its search, in `unit`.
        growths: the hypervolume over the cost, one a study.
        fronts: the points of each study's front, by size.
        empty: names of the studies that completed no trial.
        cost_note: what the reader must know of the costs; "" for nothing.
        same_data: whether all errors are of the same data and split; if not, fronts cannot be compared.
    """

    names: tuple[str, ...]
    reference: ReferencePoint
    unit: str
    equal_cost: float
    growths: tuple[HypervolumeGrowth, ...]
    fronts: tuple[tuple[FrontPoint, ...], ...]
    same_data: bool
    empty: tuple[str, ...] = ()
    cost_note: str = ""


def compare_fronts(
    studies: Sequence[StudyRecord], unit: str | None = None, reference: ReferencePoint | None = None
) -> FrontComparison:
    """Compare the fronts of studies.

    Args:
        studies: two or more.
        unit: of cost, one of `COST_UNITS`; None: seconds where all were trained on like machines, else epochs.
        reference: the point that bounds every hypervolume; None for the one that all studies share.

    Returns:
        Fronts and hypervolumes; higher hypervolumes are better.

    Raises:
        InputError: the studies' networks differ in size and no reference was given, or costs are not on record.
    """
    reference = reference or _shared_reference(studies)
    machines = {", ".join(sorted(names)) for study in studies if (names := _machines(study))}
    note = ""
    if unit is None and len(machines) > 1:
        note = f"Costs are epochs, because the machines differ ({'; '.join(sorted(machines))})."
    elif unit == "seconds" and len(machines) > 1:
        note = f"Seconds of unlike machines ({'; '.join(sorted(machines))}) are no equal cost."
    unit = unit or ("epochs" if len(machines) > 1 else "seconds")
    growths = tuple(hypervolume_growth(study, reference, unit) for study in studies)
    return FrontComparison(
        names=tuple(study.name for study in studies),
        reference=reference,
        unit=unit,
        equal_cost=min(growth.cost for growth in growths),
        growths=growths,
        fronts=tuple(tuple(pareto_front(collect_points(study))) for study in studies),
        same_data=len({prints for study in studies if (prints := _fingerprints(study))}) <= 1,
        empty=tuple(study.name for study in studies if not completed_trials(study.trials.values())),
        cost_note=note,
    )


def _machines(study: StudyRecord) -> set[str]:
    """Device, share and host of each attempt of a study, in words."""
    attempts = [attempt for trial in study.trials.values() for attempt in trial.attempts]
    return {
        " ".join(
            f"{attempt[name]:g} GPU" if name == "gpus" else str(attempt[name])
            for name in ("host", "device", "gpus")
            if attempt.get(name)
        )
        for attempt in attempts
        if attempt.get("host") or attempt.get("device")
    }


def _fingerprints(study: StudyRecord) -> frozenset[str]:
    return frozenset(trial.specification.data.fingerprint for trial in study.trials.values() if trial.specification)


def _shared_reference(studies: Sequence[StudyRecord]) -> ReferencePoint:
    references = {chance_reference_point(study) for study in studies}
    if len(references) > 1:
        ordered = sorted(references, key=lambda reference: reference.params)
        choices = "; ".join(f"{reference.params:,.0f},{reference.error:g}" for reference in ordered)
        raise InputError(f"the studies must share one reference point; give one by --reference, of: {choices}")
    return references.pop()


def parse_reference(text: str) -> ReferencePoint:
    """Read the reference point of a hypervolume.

    Args:
        text: `PARAMS,ERROR`, e.g. `750000,90`.

    Returns:
        The point.

    Raises:
        InputError: the text is no such pair, or the point is out of range.
    """
    try:
        params, error = (float(part) for part in text.split(","))
    except ValueError as cause:
        raise InputError(f"--reference must be PARAMS,ERROR (such as 750000,90), but got {text!r}") from cause
    if not (params > 0 and 0 < error <= 100):
        raise InputError(f"--reference must be parameters above 0 and a percentage, but got {text!r}")
    return ReferencePoint(params, error)
