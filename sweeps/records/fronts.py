"""Which trials are worth keeping: the front of size and validation error, and the best within each budget.

A point is one setting with all its seeds. It counts by the mean validation error over those that were trained to their
end and were not found to be broken, and stands on the front with every one of them. This is the one rule for it: what
the search repeats, what is kept as a model and what a report shows are the same points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, TypeVar

from lowrank.utils.pareto import non_dominated
from sweeps.records.events import Role, Status
from sweeps.records.model import StudyRecord, TrialRecord

SEED_DEPENDENT_STATUSES = (Status.DIVERGED, Status.FAILED)  # ends that another seed need not have
T = TypeVar("T")


def completed_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that were trained to their end and count."""
    return [t for t in trials if t.status is Status.COMPLETED and t.val_error is not None and not t.broken]


def point_key(trial: TrialRecord) -> str:
    """What a trial trains, the seed left out: trials that repeat each other have the same."""
    if trial.point_id:
        return trial.point_id
    unseeded = {key: value for key, value in trial.specification.items() if key != "seed"}
    return json.dumps(unseeded, sort_keys=True)


def group_by_point(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Finished trials by point, references too: one for each seed, the first proposed first."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in completed_trials(trials):
        point, seed = point_key(trial), trial.specification.get("seed")
        if not trial.point_id and any(other.specification.get("seed") == seed for other in found.get(point, ())):
            point = f"{point} {trial.trial_id}"  # records that say too little to be told apart
        found.setdefault(point, []).append(trial)
    return list(found.values())


def searched_points(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Those of `group_by_point` that the search proposed and whose size is known."""
    return [
        seeds for seeds in group_by_point(trials) if seeds[0].role is not Role.REFERENCE and "params" in seeds[0].counts
    ]


def non_dominated_points(points: Sequence[T], objectives: Callable[[T], tuple[float, float]]) -> list[T]:
    """The points that no other beats in both objectives, smallest first objective first; both are minimised."""
    sized = [objectives(point) for point in points]
    return [points[index] for index in sorted(non_dominated(sized), key=lambda index: sized[index])]


def mean_error(seeds: Iterable[TrialRecord]) -> float:
    """Mean validation error, in percent, of a point's finished trials."""
    return fmean(trial.val_error or 0.0 for trial in seeds)


def front(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """The points that no other beats in both parameters and mean validation error, each as its finished trials."""
    return non_dominated_points(
        searched_points(trials), lambda seeds: (float(seeds[0].counts["params"]), mean_error(seeds))
    )


def front_settings(study: StudyRecord) -> list[dict[str, Any]]:
    """The settings of the front as the search alone found it: those that get further seeds, which do not move it.

    A training that diverged or failed is a result of its seed, not of its setting. Where its last error would have put
    the setting on the front, the setting gets its other seeds too; not so where the trial was marked as broken.
    """
    searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH]
    done = [seeds[0] for seeds in front(searched)]
    cut = [
        t
        for t in searched
        if t.status in SEED_DEPENDENT_STATUSES and not t.broken and math.isfinite(t.val_error or math.nan)
    ]
    sized = [(float(trial.counts["params"]), trial.val_error or 0.0) for trial in [*done, *cut]]
    return [trial.parameters for trial in done] + [
        cut[index - len(done)].parameters for index in non_dominated(sized) if index >= len(done)
    ]


def front_first_seeds(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The first seed of each point of the front: the one that is kept as a model."""
    return [seeds[0] for seeds in front(trials)]


def front_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Every seed of the points of the front, and the references always."""
    trials = list(trials)
    references = [trial for trial in completed_trials(trials) if trial.role is Role.REFERENCE]
    return [trial for seeds in front(trials) for trial in seeds] + references


def best_trials(study: StudyRecord) -> dict[str, TrialRecord]:
    """The best of the front by the names one asks for: `best`, and `best-under-N` for each limit of N parameters.

    Best is the lowest mean validation error; of equal ones the smallest network. A point is named by its first seed.
    """
    points = sorted(front(study.trials.values()), key=lambda seeds: (mean_error(seeds), seeds[0].counts["params"]))
    best = [seeds[0] for seeds in points]
    strata: list[dict[str, Any]] = study.header.get("strata") or []
    limits = sorted({int(stratum["params"]) for stratum in strata if stratum.get("params")})
    found = {"best": best[0]} if best else {}
    for limit in limits:
        fitting = [trial for trial in best if trial.counts["params"] <= limit]
        if fitting:
            found[f"best-under-{limit}"] = fitting[0]
    return found
