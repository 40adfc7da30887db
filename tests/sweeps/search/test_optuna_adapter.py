"""What this project uses of Optuna beyond its public API: a failure here says what an upgrade broke."""

from __future__ import annotations

import inspect

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps.search.optuna_adapter import storage_study_id, storage_trial_id
from sweeps.search.optuna_storage import CrashSafeJournalBackend, FilteredStorage


@pytest.fixture
def studies(tmp_path):
    """Two studies in one storage, so that numbers within a study and within the storage differ."""
    storage = FilteredStorage(CrashSafeJournalBackend(tmp_path / "optuna.journal"))
    pair = [optuna.create_study(storage=storage, study_name=name) for name in ("first", "second")]
    for study in pair:
        study.tell(study.ask(), 1.0)
    return pair


def test_a_study_and_a_trial_have_private_numbers_that_storages_take(studies):
    study = studies[1]
    storage = study._storage  # the one private name that only this test needs
    assert storage.get_study_name_from_id(storage_study_id(study)) == "second"
    trial = study.get_trials(deepcopy=False)[0]
    assert trial.number == 0
    assert storage_trial_id(trial) != trial.number
    assert storage.get_trial(storage_trial_id(trial)).value == 1.0


def test_samplers_read_trials_through_the_method_that_hides_them(studies):
    study = studies[0]
    study._storage.hide(storage_study_id(study), "ours", number=0)
    assert [trial.state for trial in study.get_trials(deepcopy=False)] == [TrialState.FAIL]
    assert studies[1].get_trials(deepcopy=False)[0].state is TrialState.COMPLETE


def test_overridden_methods_have_the_arguments_of_their_base_classes():
    for ours, theirs, name in (
        (FilteredStorage, JournalStorage, "get_all_trials"),
        (CrashSafeJournalBackend, JournalFileBackend, "append_logs"),
    ):
        ours_of, theirs_of = (list(inspect.signature(getattr(owner, name)).parameters) for owner in (ours, theirs))
        assert ours_of == theirs_of, name


def test_the_journal_is_a_file_of_lines_that_may_be_cut_at_a_line_break(tmp_path):
    path = tmp_path / "optuna.journal"
    backend = CrashSafeJournalBackend(path)
    backend.append_logs([{"op_code": 1}, {"op_code": 2}])
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().endswith(b"\n")
