"""Equal trials of a series are trained once: a study takes over what another study of its series has trained.

The studies of a series lie in one folder. A trial that one of them is about to launch, and that another has on record,
is adopted: its epochs and its end are journaled as the trial's own, with the study they came from, and its weights are
linked into the study's folder. So tables, MLflow, fronts and the sampler treat it like any other; its cost is counted
only where it was paid.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowrank.utils import atomic_path
from sweeps.records import (
    CHECKPOINT_FILE,
    JOURNAL_FILE,
    SERIES_FILE,
    TRIALS_FOLDER,
    EventFields,
    Status,
    TrialRecord,
    fold_journal,
    resolve_number_format,
)

REUSABLE = (Status.COMPLETED, Status.DIVERGED)  # ends that another training of the same trial would reach again
MACHINE = ("host", "device", "precision", "cpus", "gpus", "processes")  # of the attempt that trained it


@dataclass(frozen=True)
class ReusableTrial:
    """A trial of another study, and the folder of that study."""

    trial: TrialRecord
    study: Path

    @property
    def origin_study(self) -> str:
        """The study that trained the weights."""
        return str(self.trial.adopted.get("study", self.study.name))

    @property
    def weights(self) -> Path:
        """The file of its last weights."""
        return weights_path(self.study, self.trial.trial_id)

    @property
    def usable(self) -> bool:
        """Whether it has an end that counts, and the weights of that end are there."""
        if self.trial.broken or self.trial.status not in REUSABLE:
            return False
        return self.trial.status is Status.DIVERGED or self.weights.is_file()

    def origin(self) -> EventFields:
        """Return the study that trained it and the machine, for the journal."""
        machine = {name: value for name in MACHINE if (value := self.trial.last_attempt(name)) is not None}
        return {"study": self.origin_study, **machine}


@dataclass
class SiblingResults:
    """The trials of the other studies of a series, by id.

    There are none for a study that is in no series.
    """

    trials: dict[str, list[ReusableTrial]] = field(default_factory=dict)
    study: str = ""  # name of the study whose siblings they are
    device: str | None = None  # kind of device on which that study trains; None where it is not known yet

    @classmethod
    def read(cls, folder: Path) -> SiblingResults:
        """Read the studies of the series beside a study, as they stand now.

        Args:
            folder: the study's.

        Returns:
            Their trials; none where the study is in no series.

        Raises:
            InputError: one of their journals is damaged.
        """
        siblings = cls(study=folder.name)
        if not (folder.parent / SERIES_FILE).is_file():
            return siblings
        for path in sorted(folder.parent.glob(f"*/{JOURNAL_FILE}")):
            if path.parent != folder:
                siblings.add(path.parent, fold_journal(path).trials.values())
        return siblings

    def add(self, study: Path, trials: Iterable[TrialRecord]) -> None:
        """Add the trials of one study.

        Args:
            study: its folder.
            trials: its trials.
        """
        for trial in trials:
            self.trials.setdefault(trial.trial_id, []).append(ReusableTrial(trial, study))

    def find(self, trial_id: str) -> ReusableTrial | None:
        """Find a trial that can be adopted: it was computed in the format in which this study would compute it.

        Args:
            trial_id: its id.

        Returns:
            The trial, in the study that trained it if it is still there; None where there is none.
        """
        usable = [sibling for sibling in self.trials.get(trial_id, ()) if sibling.usable and self._has_format(sibling)]
        return min(usable, key=lambda sibling: bool(sibling.trial.adopted), default=None)

    def _has_format(self, sibling: ReusableTrial) -> bool:
        here = resolve_number_format(sibling.trial.specification, self.device)
        return sibling.trial.number_format in (None, here) or here is None

    def tested(self, trial: TrialRecord) -> TrialRecord | None:
        """Return the record of another study that has a test error of the same weights.

        Args:
            trial: a trial of this study.

        Returns:
            That study's record of the trial; None where no study has looked at the test split with these weights.
        """
        siblings = (sibling.trial for sibling in self._with_equal_weights(trial))
        return next((sibling for sibling in siblings if sibling.test_error is not None), None)

    def _with_equal_weights(self, trial: TrialRecord) -> Sequence[ReusableTrial]:
        origin = str(trial.adopted.get("study", self.study))
        return [sibling for sibling in self.trials.get(trial.trial_id, ()) if sibling.origin_study == origin]


def weights_path(study: Path, trial_id: str) -> Path:
    """Return the file that holds a trial's weights.

    Args:
        study: the study's folder.
        trial_id: the trial's id.

    Returns:
        The path, whether or not there is a file.
    """
    return study / TRIALS_FOLDER / trial_id / CHECKPOINT_FILE


def link_weights(sibling: ReusableTrial, study: Path) -> None:
    """Give a study the weights of another study's trial.

    They are a hard link where the disk has links, else a copy.

    Args:
        sibling: the trial of the other study; without weights nothing is done.
        study: the folder of the study that adopts it.

    Raises:
        OSError: the folder cannot be written.
    """
    target = weights_path(study, sibling.trial.trial_id)
    if not sibling.weights.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        try:
            os.link(sibling.weights, temporary)
        except OSError:  # another disk, or one without links
            shutil.copy2(sibling.weights, temporary)
