"""How often a trial is taken up again, by what ended its attempt."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError

from sweeps.cluster.ray_adapter import NODE_DEATH
from sweeps.execution.retries import RETRY_BUDGET, Attempts
from sweeps.execution.worker_errors import WorkerLostError


def died(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = text
    return error


def goes_on(error: object, times: int = 20) -> int:
    """How many attempts in a row may end so before the trial is given up."""
    attempts = Attempts()
    return next((number for number in range(times) if not attempts.may_go_on("a", error)), times)


@pytest.mark.parametrize("error", [died("worker died: SIGKILL"), WorkerLostError("no batch came for 3 s")])
def test_a_lost_process_may_be_lost_a_few_times_at_one_place(error):
    assert goes_on(error) == RETRY_BUDGET


def test_an_error_of_its_own_gets_one_further_attempt():
    assert goes_on(ValueError("no such method")) == 1


@pytest.mark.parametrize("error", [died(f"The actor died because {NODE_DEATH}. Node Id: 1"), NodeDiedError("gone")])
def test_a_lost_machine_is_never_the_trial_s_fault(error):
    assert goes_on(error) == 20


def test_a_new_epoch_wipes_the_slate_and_trials_are_counted_apart():
    attempts = Attempts()
    for _ in range(10):
        assert attempts.may_go_on("a", died("killed"))
        attempts.advanced("a")
    assert attempts.may_go_on("a", ValueError())
    assert attempts.may_go_on("b", ValueError())
    assert not attempts.may_go_on("a", ValueError())
