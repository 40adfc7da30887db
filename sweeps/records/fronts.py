"""The front of size and validation error, and the best trial within each budget.

A point is one setting with all its seeds. Its error is the mean validation error over the seeds that were trained to
their end and not excluded; all of them stand on the front together. The search, the kept models and the reports use
this one rule.

Where the front was repeated with further seeds, only points with all their seeds stand on it: the lowest of many single
errors is lower than a mean of several only because it was lucky (`competing_points`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TypeVar

from lowrank.utils import non_dominated
from sweeps.records.events import Role, Status
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.space import Value

SEED_DEPENDENT_STATUSES = (Status.DIVERGED, Status.FAILED)  # ends that another seed may avoid
T = TypeVar("T")
POWER_Z = 1.6448536269514722 + 0.8416212335729143  # one-sided 95 %, seen in 80 % of studies
TYPICAL_DISCORDANCE = 1.0  # images on which one of two networks is wrong alone, as a share of their mean error


def completed_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that were trained to their end and count.

    Args:
        trials: of a study.

    Returns:
        Those with a validation error that were not excluded.
    """
    return [t for t in trials if t.status is Status.COMPLETED and t.val_error is not None and not t.broken]


def point_key(trial: TrialRecord) -> str:
    """Name what a trial trains, its seed left out.

    Args:
        trial: the record.

    Returns:
        The same text for all seeds of a point.
    """
    if trial.point_id:
        return trial.point_id
    specification = trial.specification.to_json() if trial.specification else {}
    unseeded = {key: value for key, value in specification.items() if key != "seed"}
    return json.dumps(unseeded, sort_keys=True)


def group_by_point(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Group completed trials by point, references among them.

    Args:
        trials: of a study, in order of proposal.

    Returns:
        A list for each point: one trial for each seed, the first proposed first.
    """
    points: dict[str, list[TrialRecord]] = {}
    for trial in completed_trials(trials):
        point, seed = point_key(trial), trial.seed
        if not trial.point_id and any(other.seed == seed for other in points.get(point, ())):
            point = f"{point} {trial.trial_id}"  # old records, whose specifications do not tell all points apart
        points.setdefault(point, []).append(trial)
    return list(points.values())


def searched_points(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Choose the points that the search proposed and whose size is known.

    Args:
        trials: of a study.

    Returns:
        Those of `group_by_point`, without references.
    """
    return [
        seeds for seeds in group_by_point(trials) if seeds[0].role is not Role.REFERENCE and "params" in seeds[0].counts
    ]


def non_dominated_points(points: Sequence[T], objectives: Callable[[T], tuple[float, float]]) -> list[T]:
    """Choose the points that no other beats in both objectives.

    Args:
        points: any objects.
        objectives: gives a point's two objectives, both minimised.

    Returns:
        The points, smallest first objective first.
    """
    sized = [objectives(point) for point in points]
    return [points[index] for index in sorted(non_dominated(sized), key=lambda index: sized[index])]


def mean_error(seeds: Iterable[TrialRecord]) -> float:
    """Average the validation error over a point's completed trials.

    Args:
        seeds: the trials.

    Returns:
        The mean, in percent.
    """
    return fmean(trial.val_error or 0.0 for trial in seeds)


def front(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Find the points that no other beats in both size and mean validation error.

    Args:
        trials: of a study, those without a result too: they say whether a point still waits for a seed.

    Returns:
        The points, smallest first, each as its completed trials.
    """
    return _front_of(competing_points(trials))


def _front_of(points: Sequence[list[TrialRecord]]) -> list[list[TrialRecord]]:
    return non_dominated_points(points, lambda seeds: (float(seeds[0].counts["params"]), mean_error(seeds)))


def competing_points(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Choose the points that may stand on the front: those with all their seeds.

    A study that is repeated gives more seeds to the points of its first seed's front. Once all of these have had m
    seeds, only points with m results compete. A point that lost one of its seeds (it diverged, failed or was excluded)
    does not stand on the front then. Where some of that front still waits, or nothing was repeated, all compete.

    Args:
        trials: of a study, those without a result too.

    Returns:
        Those of `searched_points` that compete.
    """
    trials = list(trials)
    points = searched_points(trials)
    seed_count = max(map(len, points), default=1)
    if seed_count == 1:
        return points
    first_front = non_dominated_points(
        points, lambda seeds: (float(seeds[0].counts["params"]), seeds[0].val_error or 0.0)
    )
    ended = _ended_seeds(trials)
    waiting_for = min(max(len(seeds), ended.get(point_key(seeds[0]), 0)) for seeds in first_front)
    needed = min(seed_count, waiting_for)
    return [seeds for seeds in points if len(seeds) >= needed]


def _ended_seeds(trials: Iterable[TrialRecord]) -> Counter[str]:
    """Count the seeds of each point that will not be trained any further, whether they have a result or not."""
    return Counter(point_key(trial) for trial in trials if trial.ended and trial.status is not Status.INFEASIBLE)


def front_settings(study: StudyRecord, seeds: int = 1, limit: int = 0) -> list[dict[str, Value]]:
    """Find the settings of the search's own front, which get further seeds.

    They are those of the front of the first seed. When all of them have had their seeds, their means are higher than
    their first errors were, and settings whose single error is below them come onto the front: these get their seeds
    too, and so on until the front stands still or `limit` is reached.

    A training that diverged or failed is a result of its seed, not of its setting. Where its last error would have put
    the setting on the front, the setting gets its other seeds too, unless the trial was excluded.

    Args:
        study: the study.
        seeds: how many each setting gets, the first included.
        limit: the most repeats beyond those of the first front.

    Returns:
        The proposed points (dotted name -> value), those of the first front first.
    """
    searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH]
    completed = [group[0] for group in _front_of(searched_points(searched))]
    unfinished = [
        t
        for t in searched
        if t.status in SEED_DEPENDENT_STATUSES and not t.broken and math.isfinite(t.val_error or math.nan)
    ]
    sized = [(float(trial.counts["params"]), trial.val_error or 0.0) for trial in [*completed, *unfinished]]
    chosen = completed + [
        unfinished[index - len(completed)] for index in non_dominated(sized) if index >= len(completed)
    ]
    if limit > 0 and seeds > 1:
        chosen += _later_settings(study, searched, chosen, seeds, limit)
    return [trial.parameters for trial in chosen]


def _later_settings(
    study: StudyRecord, searched: Sequence[TrialRecord], first: Sequence[TrialRecord], seeds: int, limit: int
) -> list[TrialRecord]:
    """The settings that came onto the front when those before them had all their seeds, within the limit."""
    trials = list(study.trials.values())
    repeats = Counter(point_key(trial) for trial in trials if trial.role is Role.REPEAT)
    before = {point_key(trial) for trial in first}
    later = [trial for trial in searched if point_key(trial) not in before and repeats[point_key(trial)]]
    ended = _ended_seeds(trials)
    if any(ended[point_key(trial)] < seeds for trial in [*first, *later]):
        return later  # the front is not known before all of them have their seeds
    lost = {key for key, count in ended.items() if count >= seeds}
    points = [group for group in searched_points(trials) if len(group) >= seeds or point_key(group[0]) not in lost]
    waiting = [group[0] for group in _front_of(points) if ended[point_key(group[0])] < seeds]
    waiting = [trial for trial in waiting if trial.role is Role.SEARCH and point_key(trial) not in before]
    affordable = max(0, limit - sum(repeats[point_key(trial)] for trial in later)) // (seeds - 1)
    return later + waiting[:affordable]


def front_first_seeds(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the first seed of each point of the front, to be registered as a model.

    Args:
        trials: of a study.

    Returns:
        One trial a point, smallest first.
    """
    return [seeds[0] for seeds in front(trials)]


def model_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials whose networks are written as models.

    Args:
        trials: of a study.

    Returns:
        The first seed of each point of the front, then of each reference.
    """
    trials = list(trials)
    references = [seeds[0] for seeds in group_by_point(trials) if seeds[0].role is Role.REFERENCE]
    return front_first_seeds(trials) + references


def front_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose every seed of the points of the front, and the references always.

    Args:
        trials: of a study.

    Returns:
        The completed trials.
    """
    trials = list(trials)
    references = [trial for trial in completed_trials(trials) if trial.role is Role.REFERENCE]
    return [trial for seeds in front(trials) for trial in seeds] + references


def best_trials(study: StudyRecord) -> dict[str, TrialRecord]:
    """Name the best trials of the front, overall and within each budget.

    The names are `best`, and `best-under-N` for each limit of N parameters. The best point has the lowest mean
    validation error, of equal ones the fewest parameters.

    Args:
        study: the study.

    Returns:
        The first seed of the point by name.
    """
    points = sorted(front(study.trials.values()), key=lambda seeds: (mean_error(seeds), seeds[0].counts["params"]))
    best = [seeds[0] for seeds in points]
    limits = sorted({int(stratum.params) for stratum in study.header.strata if stratum.params})
    named = {"best": best[0]} if best else {}
    for limit in limits:
        fitting = [trial for trial in best if trial.counts["params"] <= limit]
        if fitting:
            named[f"best-under-{limit}"] = fitting[0]
    return named


def decidable_difference(
    images: int, seeds: int, error: float, seed_deviation: float | None = None, discordance: float = TYPICAL_DISCORDANCE
) -> float:  # fmt: skip
    """Return the smallest true difference that four of five studies decide.

    Args:
        images: on which both are measured.
        seeds: of each.
        error: about that of both, in percent.
        seed_deviation: standard deviation between seeds in points; None for unknown, which counts the images alone.
        discordance: images on which one of the two is wrong alone, as a share of `error`.

    Returns:
        In points, for a one-sided test at 95 %.
    """
    by_image = 1e4 * discordance * error / 100 / images / seeds**0.5
    by_seed = 2 * (seed_deviation or 0.0) ** 2 / seeds
    return POWER_Z * math.sqrt(by_image + by_seed)
