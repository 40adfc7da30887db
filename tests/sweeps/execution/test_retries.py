"""How often a trial is retried, by what ended its attempt."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError

from sweeps.cluster.ray_adapter import NODE_DEATH
from sweeps.execution.retries import RETRY_BUDGET, RetryPolicy
from sweeps.execution.worker_errors import WorkerLostError


def died(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = text
    return error


def retries(error: object, limit: int = 20) -> int:
    """How often in a row a trial is retried after this error."""
    policy = RetryPolicy()
    return next((number for number in range(limit) if not policy.may_retry("a", 0, error)), limit)


@pytest.mark.parametrize("error", [died("worker died: SIGKILL"), WorkerLostError("no batch came for 3 s")])
def test_a_trial_is_retried_a_few_times_after_lost_processes(error):
    assert retries(error) == RETRY_BUDGET


def test_a_trial_is_retried_once_after_an_error_of_its_own():
    assert retries(ValueError("no such method")) == 1


@pytest.mark.parametrize("error", [died(f"The actor died because {NODE_DEATH}. Node Id: 1"), NodeDiedError("gone")])
def test_a_trial_is_always_retried_after_a_lost_machine(error):
    assert retries(error) == 20


def test_failures_count_for_each_trial_alone_and_until_its_next_epoch():
    policy = RetryPolicy()
    for epoch in range(10):
        assert policy.may_retry("a", epoch, died("killed"))
    assert policy.may_retry("a", 10, ValueError())
    assert policy.may_retry("b", 10, ValueError())
    assert not policy.may_retry("a", 10, ValueError())
