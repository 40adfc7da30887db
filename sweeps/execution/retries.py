"""Retry policy. One of our trials may take several Ray trials (attempts)."""

from __future__ import annotations

from collections import Counter

from ray.exceptions import RayActorError

from sweeps.cluster import is_machine_lost
from sweeps.execution.worker_errors import WorkerLostError

RETRY_BUDGET = 3  # what the failures of a trial may cost together between two new epochs
RETRY_COST_WORKER_LOST = 1  # a process may die for reasons that are not the trial's
RETRY_COST_TRIAL_ERROR = 2  # an error that comes twice at the same epoch is the trial's own


class RetryPolicy:
    """Decides whether a trial whose attempt failed is tried again, by its failures since its last new epoch."""

    def __init__(self) -> None:
        self._costs: Counter[str] = Counter()

    def reset(self, trial_id: str) -> None:
        """Forget the failures of a trial that has trained a new epoch.

        Args:
            trial_id: the trial.
        """
        self._costs.pop(trial_id, None)

    def may_retry(self, trial_id: str, error: object) -> bool:
        """Count a failed attempt and decide whether the trial is tried again.

        The loss of a machine costs nothing, however often it happens.

        Args:
            trial_id: the trial.
            error: what ended the attempt.

        Returns:
            True if the trial is tried again.
        """
        if not is_machine_lost(error):
            worker_lost = isinstance(error, RayActorError | WorkerLostError)
            self._costs[trial_id] += RETRY_COST_WORKER_LOST if worker_lost else RETRY_COST_TRIAL_ERROR
        return self._costs[trial_id] <= RETRY_BUDGET
