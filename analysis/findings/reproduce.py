"""The command that trains a trial of a study again from its specification on record."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from analysis.stats import FrontPoint
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand:
    """The command of one trial. The names of the fields are those of the CSV table.

    Attributes:
        trial_id: of the trial.
        name: its setting in words.
        command: trains it again; "" if there is none.
        why_not: why there is no command; "" if there is one.
    """

    trial_id: str
    name: str
    command: str
    why_not: str = ""


def reproduce_commands(study: StudyRecord, points: Iterable[FrontPoint], folder: Path) -> list[ReproduceCommand]:
    """Return the command of each point.

    Args:
        study: the records.
        points: of the study.
        folder: that has the study's records, as the reader would type it.

    Returns:
        One command a point.
    """
    return [reproduce_command(study, point.trial_id, point.name, folder) for point in points]


def reproduce_command(study: StudyRecord, trial_id: str, name: str, folder: Path) -> ReproduceCommand:
    """Return the command of one trial.

    Args:
        study: the records.
        trial_id: of the trial.
        name: its setting in words.
        folder: that has the study's records, as the reader would type it.

    Returns:
        The command, or why there is none.
    """
    specification = study.trials[trial_id].specification
    if specification is None:
        return ReproduceCommand(trial_id=trial_id, name=name, command="", why_not="its record has no specification")
    command = f"python sweeps/run.py --reproduce {shlex.quote(str(folder))} {shlex.quote(trial_id)}"
    command += specification.permission_options()
    return ReproduceCommand(trial_id=trial_id, name=name, command=command)
