"""Retry policy. One of our trials may take several Ray trials (attempts)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ray.exceptions import RayActorError

from sweeps.cluster import is_machine_lost
from sweeps.execution.worker_errors import WorkerLostError

RETRY_BUDGET = 3  # what the failures of a trial may cost together between two new epochs
RETRY_COST_WORKER_LOST = 1  # a process may die for reasons that are not the trial's
RETRY_COST_TRIAL_ERROR = 2  # an error that comes twice at the same epoch is the trial's own


@dataclass
class RetryPolicy:
    """Decides whether a trial whose attempt failed is tried again, by its failures since its last new epoch."""

    costs: Counter[tuple[str, int]] = field(default_factory=Counter)  # by trial and its last epoch at the failure

    def may_retry(self, trial_id: str, last_epoch: int, error: object) -> bool:
        """Count a failed attempt and decide whether the trial is tried again.

        The loss of a machine costs nothing, however often it happens.

        Args:
            trial_id: the trial.
            last_epoch: the newest epoch on its record.
            error: what ended the attempt.

        Returns:
            True if the trial is tried again.
        """
        key = (trial_id, last_epoch)
        if not is_machine_lost(error):
            worker_lost = isinstance(error, RayActorError | WorkerLostError)
            self.costs[key] += RETRY_COST_WORKER_LOST if worker_lost else RETRY_COST_TRIAL_ERROR
        return self.costs[key] <= RETRY_BUDGET
