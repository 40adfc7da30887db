"""Early stopping compares only within a stratum, never stops references, and is the same after a resume."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trial_config import TrialConfig
from sweeps.records.events import Role
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.space.settings import SearchSettings
from tests.support.specifications import make_specification

SETTINGS = SearchSettings(grace=0.5, reduction=3)


def ray_trial(name: str, stratum: str = "small", role: Role = Role.SEARCH) -> SimpleNamespace:
    config = TrialConfig(trial_id=name, stratum=stratum, role=role, specification=make_specification(), study_dir="")
    return SimpleNamespace(trial_id=f"ray-{name}", config=config.to_tune())


def decide(asha: StratifiedStopping, trial: SimpleNamespace, epoch: int, error: float) -> str:
    return asha.on_trial_result(None, trial, {"epoch": epoch, "val_error": error})


@pytest.fixture
def asha() -> StratifiedStopping:
    return StratifiedStopping(SETTINGS, epochs=12, record=StudyRecord())


def add(asha: StratifiedStopping, trial: SimpleNamespace) -> SimpleNamespace:
    asha.on_trial_add(None, trial)
    return trial


def test_the_worse_trials_of_a_stratum_stop_at_the_rung_with_a_reason(asha):
    good = [add(asha, ray_trial(f"good{index}")) for index in range(3)]
    bad = add(asha, ray_trial("bad"))
    for trial in good:
        assert decide(asha, trial, 6, 5.0) == "CONTINUE"
    assert decide(asha, bad, 5, 50.0) == "CONTINUE"  # before the rung nothing stops
    assert decide(asha, bad, 6, 50.0) == "STOP"
    assert asha.stopped == {"bad": "not among the best 1/3 of small at epoch 6 (50.00 % error)"}


def test_strata_do_not_compete(asha):
    for index in range(3):
        decide(asha, add(asha, ray_trial(f"large{index}", "large")), 6, 1.0)
    assert decide(asha, add(asha, ray_trial("small0")), 6, 50.0) == "CONTINUE"


def test_references_are_never_stopped(asha):
    for index in range(3):
        decide(asha, add(asha, ray_trial(f"{index}")), 6, 1.0)
    reference = add(asha, ray_trial("dense", "small", Role.REFERENCE))
    assert decide(asha, reference, 6, 99.0) == "CONTINUE"


def test_a_resumed_study_stops_as_the_undisturbed_one():
    record = StudyRecord()
    for index in range(3):
        epochs = {epoch: {"val_error": 5.0} for epoch in range(1, 13)}
        record.trials[f"{index}"] = TrialRecord(f"{index}", stratum="small", epochs=epochs)
    asha = StratifiedStopping(SETTINGS, epochs=12, record=record)
    assert decide(asha, add(asha, ray_trial("late")), 6, 50.0) == "STOP"


def test_a_stop_that_was_not_recorded_before_a_kill_happens_on_resume():
    record = StudyRecord()
    for name, error in (("good", 5.0), ("bad", 50.0)):
        record.trials[name] = TrialRecord(name, stratum="small", epochs={6: {"val_error": error}})
    asha = StratifiedStopping(SETTINGS, epochs=12, record=record)
    assert decide(asha, add(asha, ray_trial("bad")), 7, 1.0) == "STOP"
    assert asha.stopped["bad"].endswith("at epoch 6 (50.00 % error)")
    assert decide(asha, add(asha, ray_trial("good")), 7, 5.0) == "CONTINUE"


def test_a_second_attempt_meets_its_own_rung_without_being_counted_twice(asha):
    first = add(asha, ray_trial("one"))
    assert decide(asha, first, 6, 5.0) == "CONTINUE"
    again = add(asha, SimpleNamespace(trial_id="another", config=first.config))
    assert decide(asha, again, 6, 9.0) == "CONTINUE"
    # With 9 % counted too, or instead, the cutoff would lie above 6 %
    assert decide(asha, add(asha, ray_trial("two")), 6, 6.0) == "STOP"
