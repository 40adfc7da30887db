"""Learning curves of the front and of the references: validation error by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.stats import FrontPoint, pareto_front, references
from sweeps.records import StudyRecord

MAX_CURVES = 6  # of the front; more cannot be told apart


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The validation error of one trial by epoch.

    Attributes:
        trial_id: of the trial.
        label: for the legend.
        reference: whether it is a reference network.
        points: (epoch from 1, validation error in percent), without the epochs that are not on record.
    """

    trial_id: str
    label: str
    reference: bool
    points: tuple[tuple[int, float], ...]


def learning_curves(study: StudyRecord, points: Sequence[FrontPoint]) -> list[LearningCurve]:
    """Return the learning curves of the front and of the references.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.

    Returns:
        At most `MAX_CURVES` of the front by size, evenly chosen where it is longer, then at most half as many of the
        references. A trial with fewer than two epochs on record is left out.
    """
    curves = [_curve(study, point, reference=False) for point in evenly_spaced(pareto_front(points), MAX_CURVES)]
    curves += [_curve(study, p, reference=True) for p in evenly_spaced(references(points), MAX_CURVES // 2)]
    return [curve for curve in curves if len(curve.points) > 1]


def evenly_spaced(points: Sequence[FrontPoint], limit: int) -> list[FrontPoint]:
    """Choose from a list of points: the first, the last, and others evenly between.

    Args:
        points: the list.
        limit: how many to choose at most, 2 or more.

    Returns:
        The points in their order.
    """
    if len(points) <= limit:
        return list(points)
    return [points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit)]


def _curve(study: StudyRecord, point: FrontPoint, *, reference: bool) -> LearningCurve:
    epochs = study.trials[point.trial_id].epochs
    errors = [(number, metrics["val_error"]) for number, metrics in sorted(epochs.items()) if "val_error" in metrics]
    label = point.form if reference else f"{point.name}, {point.params:,}"
    return LearningCurve(trial_id=point.trial_id, label=label, reference=reference, points=tuple(errors))
