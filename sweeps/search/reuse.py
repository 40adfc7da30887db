"""Equal trials of a series are trained once: a study adopts what another study of its series has trained to its end.

The studies of a series lie in one folder. A trial that one of them is about to launch and that another has on record
is taken over: its epochs and its end are journaled as the trial's own, with a mark that says where they came from, and
its weights are linked into the study's folder. So tables, MLflow, fronts and the sampler have it like any other; only
the cost is counted where it was paid.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.records.events import Status
from sweeps.records.journal import read_journal
from sweeps.records.model import TrialRecord, fold
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, SERIES_FILE, TRIALS_FOLDER

RESULTS = (Status.COMPLETED, Status.DIVERGED)  # ends that training the same once more would reach again
MACHINE = ("host", "device", "cpus", "gpus", "processes")  # of the attempt that trained it


@dataclass(frozen=True)
class ReusableTrial:
    """A trial of another study, and the folder of that study."""

    trial: TrialRecord
    study: Path

    @property
    def weights(self) -> Path:
        """Its last weights."""
        return weights_path(self.study, self.trial.trial_id)

    @property
    def usable(self) -> bool:
        """Whether it has an end that counts, and the weights of that end are there."""
        if self.trial.broken or self.trial.status not in RESULTS:
            return False
        return self.trial.status is Status.DIVERGED or self.weights.is_file()

    def origin(self) -> dict[str, Any]:
        """In which study it was trained and on what, for the journal."""
        machine = {name: value for name in MACHINE if (value := self.trial.last_attempt(name)) is not None}
        return {"study": self.trial.adopted.get("study", self.study.name), **machine}


@dataclass
class SiblingResults:
    """The trials of a study's sisters, by id; empty for a study that is in no series."""

    trials: dict[str, list[ReusableTrial]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> SiblingResults:
        """Those of the studies beside the one in `folder`, as they stand now. Raises InputError for a damaged one."""
        if not (folder.parent / SERIES_FILE).is_file():
            return cls()
        paths = sorted(folder.parent.glob(f"*/{JOURNAL_FILE}"))
        found = cls()
        for path in paths:
            if path.parent != folder:
                found.add(path.parent, fold(read_journal(path)).trials.values())
        return found

    def add(self, study: Path, trials: Iterable[TrialRecord]) -> None:
        """Take in the trials of one study."""
        for trial in trials:
            self.trials.setdefault(trial.trial_id, []).append(ReusableTrial(trial, study))

    def find(self, trial_id: str) -> ReusableTrial | None:
        """One that can be adopted, from where it was trained if it is still there; None where there is none."""
        usable = [known for known in self.trials.get(trial_id, ()) if known.usable]
        return min(usable, key=lambda known: bool(known.trial.adopted), default=None)

    def test_error(self, trial: TrialRecord) -> float | None:
        """What the same weights had on the test split (percent), where that was looked at already."""
        same = self._of_equal_weights(trial)
        return next((known.trial.test_error for known in same if known.trial.test_error is not None), None)

    def _of_equal_weights(self, trial: TrialRecord) -> Sequence[ReusableTrial]:
        known = self.trials.get(trial.trial_id, ())
        return [each for each in known if trial.adopted or each.trial.adopted]


def weights_path(study: Path, trial_id: str) -> Path:
    """Where a study keeps a trial's weights."""
    return study / TRIALS_FOLDER / trial_id / CHECKPOINT_FILE


def link_weights(known: ReusableTrial, study: Path) -> None:
    """Give `study` the weights of a trial of another, as a second name of the file where the disk can; OSError."""
    target = weights_path(study, known.trial.trial_id)
    if not known.weights.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(known.weights, temporary)
    except OSError:  # another disk, or one without links
        shutil.copy2(known.weights, temporary)
    temporary.replace(target)
