"""Learning curves of the front and of the references: validation error by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.stats.front import FrontPoint, collect_points, pareto_front, references
from sweeps.records.model import StudyRecord

MAX_CURVES = 6  # of the front; more cannot be told apart


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """One trial: (epoch from 1, validation error in percent), without the epochs that are not on record."""

    trial_id: str
    label: str
    reference: bool
    points: tuple[tuple[int, float], ...]


def learning_curves(study: StudyRecord, points: Sequence[FrontPoint] | None = None) -> list[LearningCurve]:
    """The front, by size (both ends and others evenly between, where it is long), then the references.

    `points` are those of `collect`, where they are at hand.
    """
    points = collect_points(study) if points is None else points
    chosen = _evenly_spaced(pareto_front(points), MAX_CURVES)
    known = _evenly_spaced(references(points), MAX_CURVES // 2)
    curves = [_curve(study, point, reference=False) for point in chosen]
    curves += [_curve(study, point, reference=True) for point in known]
    return [curve for curve in curves if len(curve.points) > 1]


def _evenly_spaced(points: Sequence[FrontPoint], most: int) -> list[FrontPoint]:
    """At most `most` of the points, the first and the last among them, the others evenly between."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def _curve(study: StudyRecord, point: FrontPoint, *, reference: bool) -> LearningCurve:
    epochs = study.trials[point.trial_id].epochs
    found = [(number, metrics["val_error"]) for number, metrics in sorted(epochs.items()) if "val_error" in metrics]
    label = point.form if reference else f"{point.name}, {point.params:,}"
    return LearningCurve(trial_id=point.trial_id, label=label, reference=reference, points=tuple(found))
