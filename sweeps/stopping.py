"""Early stopping within strata of size: Ray's own ASHA, one instance a stratum.

ASHA compares trials at equal epochs whatever their size, so one instance over all sizes would stop every small network.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from sweeps.records import VAL_ERROR, Role, StudyRecord
from sweeps.settings import SearchSettings


class StratifiedAsha(FIFOScheduler):
    """Stops a trial that is not among the best of its own stratum at a rung; references are never stopped."""

    def __init__(self, settings: SearchSettings, epochs: int, record: StudyRecord):
        super().__init__()
        self._settings, self._epochs = settings, epochs
        self._brackets: dict[str, AsyncHyperBandScheduler] = {}
        self.stopped: dict[str, str] = {}  # trial id -> reason
        self._condemned: dict[str, str] = {}  # stopped at a rung, but the driver was killed before it could say so
        self._replay(record)

    def _reason(self, stratum: str, result: dict[str, Any]) -> str:
        return (
            f"not among the best 1/{self._settings.reduction:g} of {stratum} at epoch {result['epoch']} "
            f"({result[VAL_ERROR]:.2f} % error)"
        )

    def _bracket(self, stratum: str) -> AsyncHyperBandScheduler:
        if stratum not in self._brackets:
            grace = max(1, math.ceil(self._settings.grace * self._epochs))
            self._brackets[stratum] = AsyncHyperBandScheduler(
                time_attr="epoch", metric=VAL_ERROR, mode="min", max_t=self._epochs, grace_period=grace,
                reduction_factor=self._settings.reduction, stop_last_trials=False,
            )  # fmt: skip
        return self._brackets[stratum]

    def _replay(self, record: StudyRecord) -> None:
        """Fill the rungs with what is on record, so that a resumed study stops as the undisturbed one would."""
        for trial in record.trials.values():
            if trial.role is Role.SEARCH and trial.epochs and not trial.broken:
                bracket, stub = self._bracket(trial.stratum), _stub(trial.trial_id)
                nobody: Any = None  # ASHA asks nothing of the controller
                bracket.on_trial_add(nobody, stub)
                for epoch, metrics in sorted(trial.epochs.items()):
                    result = {"epoch": epoch, VAL_ERROR: metrics[VAL_ERROR]}
                    if bracket.on_trial_result(nobody, stub, result) == TrialScheduler.STOP:
                        self._condemned.setdefault(trial.trial_id, self._reason(trial.stratum, result))

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None:
        if trial.config["role"] == Role.SEARCH:
            self._bracket(trial.config["stratum"]).on_trial_add(tune_controller, _stub(trial.config["trial_id"]))

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        if trial.config["role"] != Role.SEARCH:
            return TrialScheduler.CONTINUE
        trial_id, stratum = trial.config["trial_id"], trial.config["stratum"]
        if trial_id in self._condemned:
            self.stopped[trial_id] = self._condemned[trial_id]
            return TrialScheduler.STOP
        action = self._bracket(stratum).on_trial_result(tune_controller, _stub(trial_id), result)
        if action == TrialScheduler.STOP:
            self.stopped[trial_id] = self._reason(stratum, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> None:
        if trial.config["role"] == Role.SEARCH:
            stub = _stub(trial.config["trial_id"])
            self._bracket(trial.config["stratum"]).on_trial_complete(tune_controller, stub, result)


def _stub(trial_id: str) -> Any:
    """All that ASHA reads of a trial: our own id, so that a second attempt meets the rungs of the first."""
    return SimpleNamespace(trial_id=trial_id)
