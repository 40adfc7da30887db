"""Every fault is injected into a real study: nothing is lost, doubled or repeated beyond its limit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.catalogue import ALL_FAULTS
from tests.faults.injections import Fault
from tests.faults.outcome import inject, undisturbed
from tests.faults.scene import QUICK
from tests.support.clusters import Machines, machines

pytestmark = [pytest.mark.faults, pytest.mark.study]

SEED = 7
OFTEN = ("trial", "driver")  # injected in every run of the tests, into a smaller study
SELDOM = [fault for fault in ALL_FAULTS if fault.name not in OFTEN]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """The answers of grids without a fault, by question; filled as tests need them."""
    return {}


def check(fault: Fault, question: Any, folder: Path, expected: Any, cluster: Machines | None, times: int) -> None:
    outcome = inject(fault, question, folder, random.Random(SEED), times, expected, cluster)
    assert outcome.injections
    assert outcome.faults == []


@pytest.mark.parametrize("fault", [fault for fault in ALL_FAULTS if fault.name in OFTEN], ids=lambda fault: fault.name)
def test_a_search_survives_a_fault(fault, tmp_path):
    check(fault, QUICK, tmp_path, None, None, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", SELDOM, ids=lambda fault: fault.name)
def test_a_grid_survives_a_fault_twice(fault, tmp_path, cluster, answers):
    if not fault.possible():
        pytest.skip(fault.needs)
    question = fault.questions[0]
    expected = fault.expected or question
    if expected.name not in answers:
        (tmp_path / "undisturbed").mkdir()
        answers[expected.name] = undisturbed(expected, tmp_path / "undisturbed", fault, cluster)
    check(fault, question, tmp_path, answers[expected.name], cluster, 2)
