"""A study whose every trial failed ends with an exit code other than 0, though its references were completed."""

from __future__ import annotations

import pytest

from sweeps.records.events import Role, Status
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.study.driver import search_failed


def study(*ends: tuple[Role, Status]) -> StudyRecord:
    trials = {str(index): TrialRecord(str(index), role=role, status=end) for index, (role, end) in enumerate(ends)}
    return StudyRecord(trials=trials)


REFERENCE = (Role.REFERENCE, Status.COMPLETED)


@pytest.mark.parametrize(
    ("ends", "failed"),
    [
        ([REFERENCE], False),
        ([REFERENCE, (Role.SEARCH, Status.FAILED), (Role.REPEAT, Status.FAILED)], True),
        ([REFERENCE, (Role.SEARCH, Status.FAILED), (Role.SEARCH, Status.INFEASIBLE)], True),
        ([REFERENCE, (Role.SEARCH, Status.FAILED), (Role.SEARCH, Status.COMPLETED)], False),
        ([REFERENCE, (Role.SEARCH, Status.FAILED), (Role.SEARCH, Status.STOPPED)], False),
    ],
)
def test_references_do_not_hide_that_every_trial_failed(ends, failed):
    assert search_failed(study(*ends)) is failed
