"""An Optuna journal storage that reports trials marked *broken* as FAIL, without changing what is stored.

Optuna never lets a finished trial change. So the sampler is shown the trials of broken results as failed ones, from
which it learns nothing; when a mark is taken back, they are as they were.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Container
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lowrank.utils import first_line, free_name
from sweeps.records import find_optuna_damage, truncate_torn_line

TRIAL_ATTRIBUTE = "trial"  # user attribute of an Optuna trial: the id of our trial that its values belong to


class CrashSafeJournalBackend(JournalFileBackend):
    """Optuna's journal in a file that holds whole lines only.

    No kill and no full disk leaves a torn line, which Optuna cannot read.
    """

    def __init__(self, path: Path):
        """Open the file, and cut off the line that a kill may have torn.

        Args:
            path: the journal; made if it is missing.

        Raises:
            OSError: the file cannot be written.
        """
        truncate_torn_line(path)
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        """Append entries, all or none.

        Args:
            logs: the entries.

        Raises:
            OSError: the disk takes no more; the file is as it was.
        """
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._path, size)
            raise


def open_storage(path: Path) -> FilteredStorage:
    """Open Optuna's journal; one that cannot be read is set aside, and a new one begun.

    Nothing is lost by that: `OptunaProposer.restore` adds what the study's journal holds.

    Args:
        path: the journal.

    Returns:
        The storage.

    Raises:
        OSError: the file cannot be read or written.
    """
    damage = find_optuna_damage(path)
    if not damage:
        try:
            return FilteredStorage(CrashSafeJournalBackend(path))
        except OSError:
            raise
        except Exception as error:  # Optuna raises anything over entries that do not fit together
            damage = first_line(error)
    aside = free_name(path.with_name(f"{path.name}.damaged"))
    path.replace(aside)
    print(
        f"{path.name} is damaged ({damage}); it is made again from the journal, the old one is {aside.name}", flush=True
    )
    return FilteredStorage(CrashSafeJournalBackend(path))


class FilteredStorage(JournalStorage):
    """A journal storage that can show the outcomes of some trials as failed."""

    def __init__(self, backend: BaseJournalBackend):
        """Open the storage; nothing is hidden yet.

        Args:
            backend: where the entries are kept.
        """
        super().__init__(backend)
        self._hidden: defaultdict[int, set[int | str]] = defaultdict(set)  # numbers of Optuna trials, ids of ours

    def hide(self, study_id: int, trial_id: str, number: int | None = None) -> None:
        """Show trials as failed from now on.

        Args:
            study_id: the study's number in this storage.
            trial_id: our trial; all Optuna trials that were told its outcome are hidden.
            number: the number of one more Optuna trial to hide.
        """
        self._hidden[study_id] |= {trial_id} if number is None else {number, trial_id}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials, hidden ones as failed.

        For the arguments see the base class.
        """
        hidden = self._hidden.get(study_id)
        if not hidden:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = [_filtered(trial, hidden) for trial in super().get_all_trials(study_id, deepcopy, None)]
        return [trial for trial in trials if states is None or trial.state in states]


def _filtered(trial: FrozenTrial, hidden: set[int | str]) -> FrozenTrial:
    if trial.number not in hidden and trial.user_attrs.get(TRIAL_ATTRIBUTE) not in hidden:
        return trial
    failed = copy.copy(trial)
    failed.state, failed.values, failed.intermediate_values = TrialState.FAIL, None, {}
    return failed
