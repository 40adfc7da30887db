"""Hypervolume of fronts of error (percent) and parameters, and how it grew with the cost of a study.

Both objectives are minimised, parameters as log10. One reference point is fixed before anything is compared; points
beyond it are dropped. The unit is points of error times decades of parameters. Higher is better. The area of a front in
two dimensions is a sum over its points; Optuna's function for it is private, so it is written out here.
Reference: Zitzler and Thiele, "Multiobjective optimization using evolutionary algorithms", PPSN 1998.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowrank.errors import InputError
from sweeps.records import Role, Status, StudyRecord, TrialRecord, non_dominated_points


@dataclass(frozen=True)
class ReferencePoint:
    """The worst corner that counts: so many parameters, so much error in percent."""

    params: float
    error: float


@dataclass(frozen=True, kw_only=True)
class HypervolumeGrowth:
    """How the hypervolume of a study grew.

    Attributes:
        study: its name.
        steps: after each completed trial, the cost so far (training seconds or epochs of all trials) and the
            hypervolume.
        cost: of everything that was trained, including trials without a result.
    """

    study: str
    steps: tuple[tuple[float, float], ...]
    cost: float

    def at(self, cost: float) -> float:
        """Return the hypervolume that was reached with at most `cost`.

        Args:
            cost: in the unit of the steps.

        Returns:
            The hypervolume; 0 before the first completed trial.
        """
        return max((volume for spent, volume in self.steps if spent <= cost), default=0.0)


def hypervolume(points: Iterable[tuple[float, float]], reference: ReferencePoint) -> float:
    """Return the area between a front and the reference point.

    Args:
        points: (parameters, error in percent).
        reference: bounds the area; points beyond it are dropped.

    Returns:
        The area in points of error times decades of parameters; 0 without a point inside.

    Raises:
        ValueError: a coordinate is NaN, or parameters are not above 0.
    """
    inside = []
    for params, error in points:
        if math.isnan(params) or math.isnan(error) or params <= 0:
            raise ValueError(f"a point needs parameters above 0 and a number as error, but got ({params}, {error})")
        if params < reference.params and error < reference.error:
            inside.append((math.log10(params), error))
    area, right = 0.0, math.log10(reference.params)
    # From the largest to the smallest: each strip to the left of `right` is as high as the best error that fits in it
    for size, error in reversed(_front(inside)):
        area += (right - size) * (reference.error - error)
        right = size
    return area


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return non_dominated_points(points, lambda point: point)


def chance_reference_point(study: StudyRecord) -> ReferencePoint:
    """Return the corner that is known before a study: the separable network's size, and the error of guessing.

    Args:
        study: the records.

    Returns:
        The corner.

    Raises:
        InputError: the records have no size of a separable network or no number of classes.
    """
    params = study.header.references.get("separable") or _separable(study)
    classes = study.header.data.classes
    if not params or not classes:
        raise InputError(
            f"{study.name} does not tell its separable network's size and its classes; give --reference PARAMS,ERROR"
        )
    return ReferencePoint(float(params), 100 - 100 / classes)


def _separable(study: StudyRecord) -> int | None:
    sizes = (trial.counts.get("separable_params") for trial in study.trials.values())
    return next((size for size in sizes if size), None)


def hypervolume_growth(study: StudyRecord, reference: ReferencePoint, unit: str = "seconds") -> HypervolumeGrowth:
    """Return the hypervolume over the cost, with trials in the order in which they ended.

    Args:
        study: the records; references are no part of the search and are left out.
        reference: bounds the hypervolume.
        unit: of cost, `seconds` or `epochs`.

    Returns:
        The growth.

    Raises:
        InputError: costs in that unit are not on record.
    """
    ended = [t for t in study.trials.values() if t.epochs and t.role is Role.SEARCH]
    ended.sort(key=lambda trial: (trial.finished_at is None, trial.finished_at or 0.0, trial.trial_id))
    spent, steps, reached = 0.0, [], list[tuple[float, float]]()
    for trial in ended:
        spent += training_cost(trial, unit)
        if trial.status is Status.COMPLETED and trial.val_error is not None and not trial.broken:
            reached = _front([*reached, (float(trial.counts["params"]), trial.val_error)])
            steps.append((spent, hypervolume(reached, reference)))
    return HypervolumeGrowth(study=study.name, steps=tuple(steps), cost=spent)


def training_cost(trial: TrialRecord, unit: str) -> float:
    """Return what a trial cost.

    Args:
        trial: the record.
        unit: `seconds` or `epochs`.

    Returns:
        The cost.

    Raises:
        InputError: seconds are asked for, but were not recorded.
    """
    if unit == "epochs":
        return float(trial.last_epoch)
    seconds = [metrics.get("epoch_seconds") for metrics in trial.epochs.values()]
    if any(value is None for value in seconds):
        raise InputError(f"trial {trial.trial_id} has no seconds on record for each epoch; use --cost epochs")
    return float(sum(value or 0.0 for value in seconds))
