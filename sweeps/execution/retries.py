"""Whether a trial whose attempt failed is taken up again. What Ray calls a trial is one attempt at ours."""

from __future__ import annotations

from collections import Counter

from ray.exceptions import RayActorError

from sweeps.cluster.ray_adapter import is_machine_lost
from sweeps.execution.worker_errors import WorkerLostError

RETRY_BUDGET = 3  # what failures may cost together until a new epoch comes in
RETRY_COST_WORKER_LOST = 1  # a process may die of anything
RETRY_COST_TRIAL_ERROR = 2  # an error twice at the same epoch is the trial's own


class Attempts:
    """Counts what went wrong with each trial since its last new epoch."""

    def __init__(self) -> None:
        self._costs: Counter[str] = Counter()

    def advanced(self, trial_id: str) -> None:
        """An epoch came in that was not on record."""
        self._costs.pop(trial_id, None)

    def may_go_on(self, trial_id: str, error: object) -> bool:
        """Count a failed attempt; a lost machine is never the trial's fault, however often it happens."""
        if not is_machine_lost(error):
            lost = isinstance(error, RayActorError | WorkerLostError)
            self._costs[trial_id] += RETRY_COST_WORKER_LOST if lost else RETRY_COST_TRIAL_ERROR
        return self._costs[trial_id] <= RETRY_BUDGET
