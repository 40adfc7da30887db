"""Whether a trial whose attempt failed is taken up again. What Ray calls a trial is one attempt at ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ray.cloudpickle
from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError
from ray.tune.experiment import Trial as RayTrial

from sweeps.execution.worker_errors import WorkerLostError

RETRY_BUDGET = 3  # what failures may cost together until a new epoch comes in
RETRY_COST_WORKER_LOST = 1  # a process may die of anything
RETRY_COST_TRIAL_ERROR = 2  # an error twice at the same epoch is the trial's own
NODE_DEATH = "its node has died"  # in Ray's words on why an actor died


class Attempts:
    """Counts what went wrong with each trial since its last new epoch."""

    def __init__(self) -> None:
        self._costs: Counter[str] = Counter()

    def advanced(self, trial_id: str) -> None:
        """An epoch came in that was not on record."""
        self._costs.pop(trial_id, None)

    def may_go_on(self, trial_id: str, error: object) -> bool:
        """Count a failed attempt; a lost machine is never the trial's fault, however often it happens."""
        if not machine_lost(error):
            lost = isinstance(error, RayActorError | WorkerLostError)
            self._costs[trial_id] += RETRY_COST_WORKER_LOST if lost else RETRY_COST_TRIAL_ERROR
        return self._costs[trial_id] <= RETRY_BUDGET


def failure(trial: RayTrial) -> object:
    """What ended an attempt, as Tune has just written it down: its own `get_error` reads a copy that is made later."""
    pickled, text = trial.pickled_error_file, trial.error_file
    if pickled and Path(pickled).exists():
        return ray.cloudpickle.loads(Path(pickled).read_bytes())
    return Path(text).read_text() if text and Path(text).exists() else "no reason was given"


def machine_lost(error: object) -> bool:
    """Whether an attempt ended with the machine it ran on."""
    if isinstance(error, NodeDiedError):
        return True
    return isinstance(error, ActorDiedError) and NODE_DEATH in str(error)
