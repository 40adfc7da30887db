"""The private parts of Optuna that this project touches, in one place; the pinned version is 5.0.0.

Optuna gives studies and trials numbers within a storage, but no public name for them, and its storages take nothing
else. `tests/sweeps/search/test_optuna_adapter.py` says what an upgrade broke.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial


def storage_study_id(study: optuna.Study) -> int:
    """Return the number of a study in its storage.

    Args:
        study: the study.

    Returns:
        The `study_id` that the storage's methods take.
    """
    return study._study_id


def storage_trial_id(trial: FrozenTrial) -> int:
    """Return the number of a trial in its storage.

    It is another one than the trial's number in its study.

    Args:
        trial: the trial.

    Returns:
        The `trial_id` that the storage's methods take.
    """
    return trial._trial_id
