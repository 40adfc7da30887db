"""Optuna's stored memory, less the trials that turned out to be broken.

Optuna never lets a finished trial change. So nothing stored is touched: the trials of broken results are shown to the
sampler as failed ones, from which it learns nothing, and a mark that is taken back brings them back.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeps.records.journal import drop_torn_line

TRIAL_ATTRIBUTE = "trial"  # of a told Optuna trial: the id of the trial that the values belong to


class CrashSafeJournalBackend(JournalFileBackend):
    """Optuna's journal in a file, of which no kill and no full disk leaves a torn line: Optuna could not read on."""

    def __init__(self, path: Path):
        drop_torn_line(path)
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As the base class; raises OSError, and then has written nothing."""
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._path, size)
            raise


class FilteredStorage(JournalStorage):
    """A journal storage that can pass over the outcomes of some trials."""

    def __init__(self, backend: BaseJournalBackend):
        super().__init__(backend)
        self._hidden: defaultdict[int, set[int | str]] = defaultdict(set)  # numbers of Optuna trials, ids of ours

    def forget(self, study_id: int, number: int | None, trial: str) -> None:
        """From now on show the Optuna trial `number`, if any, and all that repeat the outcome of `trial`, as failed."""
        self._hidden[study_id] |= {trial} if number is None else {number, trial}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As the base class, with what is to be forgotten shown as failed."""
        hidden = self._hidden.get(study_id)
        if not hidden:
            return super().get_all_trials(study_id, deepcopy, states)
        shown = [_shown(trial, hidden) for trial in super().get_all_trials(study_id, deepcopy, None)]
        return [trial for trial in shown if states is None or trial.state in states]


def _shown(trial: FrozenTrial, hidden: set[int | str]) -> FrozenTrial:
    if trial.number not in hidden and trial.user_attrs.get(TRIAL_ATTRIBUTE) not in hidden:
        return trial
    failed = copy.copy(trial)
    failed.state, failed.values, failed.intermediate_values = TrialState.FAIL, None, {}
    return failed
