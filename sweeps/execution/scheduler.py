"""Early stopping within strata of size: one instance of the study's rule (sweeps.search.stopping_rules) a stratum.

Trials are compared at equal epochs whatever their size, so one instance over all sizes would stop every small network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.records.events import Role
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import VAL_ERROR
from sweeps.search.stopping_rules import StoppingRule, make_rule
from sweeps.space.settings import SearchSettings


class StratifiedStopping(FIFOScheduler):
    """Stops a trial that the rule of its own stratum gives up; references and repeats are never stopped."""

    def __init__(self, settings: SearchSettings, epochs: int, record: StudyRecord, adopted: Sequence[TrialRecord] = ()):
        """`adopted` grows by the trials that come in whole while the study runs."""
        super().__init__()
        self._adopted, self._heard = adopted, len(adopted)  # those on record by now are replayed with the rest
        self._settings, self._epochs = settings, epochs
        self._rules: dict[str, StoppingRule | None] = {}
        self.stopped: dict[str, str] = {}  # trial id -> reason
        self._condemned: dict[str, str] = {}  # stopped at a rung, but the driver was killed before it could say so
        self._replay(record)

    def _report(self, trial_id: str, stratum: str, epoch: int, error: float) -> str | None:
        """Why the trial is to stop, None when it goes on."""
        if stratum not in self._rules:
            asked = self._settings
            self._rules[stratum] = make_rule(
                asked.stop, grace=asked.grace, epochs=self._epochs, reduction=asked.reduction, brackets=asked.brackets
            )
        rule = self._rules[stratum]
        why = rule.report(trial_id, epoch, error) if rule else None
        return f"{why} of {stratum} at epoch {epoch} ({error:.2f} % error)" if why else None

    def _replay(self, record: StudyRecord) -> None:
        """Tell the rules what is on record, so that a resumed study stops as the undisturbed one would."""
        for trial, epoch, metrics in curves(record.trials.values()):
            reason = self._report(trial.trial_id, trial.stratum, epoch, metrics[VAL_ERROR])
            if reason:
                self._condemned.setdefault(trial.trial_id, reason)

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        if trial.config["role"] != Role.SEARCH or VAL_ERROR not in result:
            return TrialScheduler.CONTINUE
        for known, epoch, metrics in curves(self._adopted[self._heard :]):
            self._report(known.trial_id, known.stratum, epoch, metrics[VAL_ERROR])
        self._heard = len(self._adopted)
        trial_id, stratum = trial.config["trial_id"], trial.config["stratum"]
        reason = self._condemned.get(trial_id) or self._report(trial_id, stratum, result["epoch"], result[VAL_ERROR])
        if reason:
            self.stopped[trial_id] = reason
        return TrialScheduler.STOP if reason else TrialScheduler.CONTINUE


def curves(trials: Iterable[TrialRecord]) -> list[tuple[TrialRecord, int, dict[str, float]]]:
    """Every epoch of every sound trial of the search, in the order in which they came in."""
    points = [
        (trial, epoch, metrics)
        for trial in trials
        if trial.role is Role.SEARCH and not trial.broken
        for epoch, metrics in sorted(trial.epochs.items())
    ]
    return sorted(points, key=lambda point: point[2].get("time", 0.0))
