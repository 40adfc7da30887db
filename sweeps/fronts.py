"""Which trials are worth keeping: the front of parameters and validation error, and the best within each budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowrank.pareto import non_dominated
from sweeps.records import Role, Status, StudyRecord, TrialRecord


def finished(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that were trained to their end and count."""
    return [t for t in trials if t.status is Status.COMPLETED and t.val_error is not None and not t.broken]


def searched_front(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Finished trials of the search that no other beats in both parameters and validation error."""
    searched = [trial for trial in finished(trials) if trial.role is Role.SEARCH and "params" in trial.counts]
    points = [(float(trial.counts["params"]), float(trial.val_error or 0.0)) for trial in searched]
    return [searched[index] for index in non_dominated(points)]


def front_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The front of the search, and the references always."""
    trials = list(trials)
    references = [trial for trial in finished(trials) if trial.role is Role.REFERENCE]
    return searched_front(trials) + references


def best_trials(study: StudyRecord) -> dict[str, TrialRecord]:
    """The best of the front by the names one asks for: `best`, and `best-under-N` for each limit of N parameters.

    Best is the lowest validation error; of equal ones the smallest network.
    """
    front = sorted(searched_front(study.trials.values()), key=lambda t: (t.val_error or 0.0, t.counts["params"]))
    strata: list[dict[str, Any]] = study.header.get("strata") or []
    limits = sorted({int(stratum["params"]) for stratum in strata if stratum.get("params")})
    found = {"best": front[0]} if front else {}
    for limit in limits:
        fitting = [trial for trial in front if trial.counts["params"] <= limit]
        if fitting:
            found[f"best-under-{limit}"] = fitting[0]
    return found
