"""Early stopping within strata of size: one instance of the study's rule (sweeps.search.stopping_rules) a stratum.

Trials are compared at equal epochs whatever their size, so one instance over all sizes would stop every small network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.execution.trial_config import trial_config
from sweeps.records import VAL_ERROR, Role, StudyRecord, TrialRecord
from sweeps.search import StoppingRule, make_rule
from sweeps.space import SearchSettings


class StratifiedStopping(FIFOScheduler):
    """Stops a trial that the rule of its stratum gives up; references and repeats are never stopped."""

    def __init__(self, settings: SearchSettings, epochs: int, record: StudyRecord, adopted: Sequence[TrialRecord] = ()):
        """Replay what is on record, so that a resumed study stops as an undisturbed one would.

        Args:
            settings: the rule and its parameters.
            epochs: of a whole training.
            record: of the study.
            adopted: trials taken whole from other studies; the search adds to it while the study runs.
        """
        super().__init__()
        self._adopted, self._adopted_seen = adopted, len(adopted)  # those on record by now are replayed with the rest
        self._settings, self._epochs = settings, epochs
        self._rules: dict[str, StoppingRule | None] = {}
        self.stopped: dict[str, str] = {}  # trial id -> reason
        self._unrecorded_stops: dict[str, str] = {}  # decided before the driver was killed, not on record
        self._replay(record)

    def _report(self, trial_id: str, stratum: str, epoch: int, error: float) -> str | None:
        """Tell the stratum's rule a point of a curve; returns why the trial is to stop, None if it goes on."""
        if stratum not in self._rules:
            settings = self._settings
            self._rules[stratum] = make_rule(
                settings.stop, grace=settings.grace, epochs=self._epochs, reduction=settings.reduction,
                brackets=settings.brackets,
            )  # fmt: skip
        rule = self._rules[stratum]
        reason = rule.report(trial_id, epoch, error) if rule else None
        return f"{reason} of {stratum} at epoch {epoch} ({error:.2f} % error)" if reason else None

    def _replay(self, record: StudyRecord) -> None:
        for trial, epoch, metrics in recorded_points(record.trials.values()):
            reason = self._report(trial.trial_id, trial.stratum, epoch, metrics[VAL_ERROR])
            if reason:
                self._unrecorded_stops.setdefault(trial.trial_id, reason)

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Decide after an epoch whether the trial goes on."""
        config = trial_config(trial.config)
        if config.role is not Role.SEARCH or VAL_ERROR not in result:
            return TrialScheduler.CONTINUE
        for adopted, epoch, metrics in recorded_points(self._adopted[self._adopted_seen :]):
            self._report(adopted.trial_id, adopted.stratum, epoch, metrics[VAL_ERROR])
        self._adopted_seen = len(self._adopted)
        reason = self._unrecorded_stops.get(config.trial_id)
        reason = reason or self._report(config.trial_id, config.stratum, result["epoch"], result[VAL_ERROR])
        if reason:
            self.stopped[config.trial_id] = reason
        return TrialScheduler.STOP if reason else TrialScheduler.CONTINUE


def recorded_points(trials: Iterable[TrialRecord]) -> list[tuple[TrialRecord, int, dict[str, float]]]:
    """List every epoch of the search's trials in the order in which they were recorded.

    Args:
        trials: references, repeats and broken trials among them are left out.

    Returns:
        Trial, epoch and metrics of each point.
    """
    points = [
        (trial, epoch, metrics)
        for trial in trials
        if trial.role is Role.SEARCH and not trial.broken
        for epoch, metrics in sorted(trial.epochs.items())
    ]
    return sorted(points, key=lambda point: point[2].get("time", 0.0))
