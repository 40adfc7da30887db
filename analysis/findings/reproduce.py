"""The command that trains a trial of a study again: its specification as recorded, whatever trial it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from analysis.stats.front import FrontPoint
from sweeps.records.model import StudyRecord
from sweeps.records.specification import REPEATABLE


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand:
    """The command of one trial; `why_not` says why there can be none ("" when there is)."""

    trial_id: str
    name: str
    command: str
    why_not: str = ""


def reproduce_commands(study: StudyRecord, points: Iterable[FrontPoint], place: Path) -> list[ReproduceCommand]:
    """A recipe a point; `place` is the folder that has the study's records, as the reader would type it."""
    return [reproduce_command(study, point.trial_id, point.name, place) for point in points]


def reproduce_command(study: StudyRecord, trial_id: str, name: str, place: Path) -> ReproduceCommand:
    """The recipe of one trial."""
    missing = [each for each in REPEATABLE if each not in study.trials[trial_id].specification]
    if missing:
        return ReproduceCommand(
            trial_id=trial_id, name=name, command="", why_not=f"its record has no {', '.join(missing)}"
        )
    command = f"python sweeps/run.py --reproduce {shlex.quote(str(place))} {trial_id}"
    return ReproduceCommand(trial_id=trial_id, name=name, command=command)
