"""The final front as the validation split sees it: which points get further seeds, and the one look at the test split.

A point is chosen by its first seed where it has one, by the mean over its seeds where it has several.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from lowrank.pareto import non_dominated
from sweeps.records import Role, Status, StudyRecord, TrialRecord

CHOSEN = (Role.SEARCH, Role.REPEAT)


def finished_points(trials: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Finished trials of the search by point: one for each seed."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.status is Status.COMPLETED and trial.val_error is not None and trial.role in CHOSEN:
            found.setdefault(trial.point_id or trial.trial_id, []).append(trial)
    return found


def front(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """The points that no other beats in both parameters and mean validation error, each as its finished trials."""
    points = list(finished_points(trials).values())
    errors = [fmean(trial.val_error or 0.0 for trial in seeds) for seeds in points]
    sizes = [float(seeds[0].counts["params"]) for seeds in points]
    return [points[index] for index in non_dominated(list(zip(sizes, errors, strict=True)))]


def front_points(record: StudyRecord) -> list[dict[str, Any]]:
    """The settings of the front as the search alone found it (repeats do not move it)."""
    searched = [trial for trial in record.trials.values() if trial.role is Role.SEARCH]
    return [seeds[0].parameters for seeds in front(searched)]
