"""Trials that were stopped early, trained to their end: did stopping lose a point of the front?

`python sweeps/run.py --retrain-stopped STUDY --sample 10 --seed 0` draws ten of them and trains each as it is on
record, but whole. It is a study of its own, like a repeat; at its end each is held against the front of the study that
stopped it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.errors import InputError
from sweeps.records.fronts import front, mean_error
from sweeps.records.journal import Journal
from sweeps.records.load import find_study, load_study
from sweeps.records.names import Status, StudyRecord, TrialRecord
from sweeps.study.retrain import ORIGIN, Repeat, check_repeat, comparison, content_of, find_repeat
from sweeps.trials.teacher import Teaching

FINISHED = "finishes"  # of a study's origin: the trials that it trains to their end, id there -> id here


@dataclass(frozen=True)
class Finish:
    """The trials that are trained to their end, and of how many they were drawn."""

    repeats: tuple[Repeat, ...]
    stopped: int

    @property
    def folder(self) -> Path:
        """Of the study that stopped them."""
        return self.repeats[0].folder

    @property
    def name(self) -> str:
        """Of the new study, unless the user names it."""
        return f"{self.repeats[0].study.name}_finish"

    def content(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a space file around the trials; `resources` are those that the user names."""
        content, count = content_of(self.repeats[0], resources), len(self.repeats)
        content["question"] = (
            f"{count} of the {self.stopped} trials that {self.repeats[0].study.name} stopped early, trained to their "
            "end: did stopping lose a point of the front?"
        )
        content["search"] |= {"trials": count, "repeats": count}  # nothing is drawn; as many rows as there are trials
        return content

    def check(self, data: ImageData, teaching: Teaching | None) -> dict[str, Any]:
        """The new study's origin, once images and teacher are known to be the same; raises InputError."""
        return {
            "study": str(self.folder.resolve()), "stopped": self.stopped,
            FINISHED: {repeat.trial.trial_id: check_repeat(repeat, data, teaching) for repeat in self.repeats},
        }  # fmt: skip

    def begin(self, journal: Journal, record: StudyRecord, folder: Path, origin: Mapping[str, Any]) -> None:
        """Propose them in the new study's journal."""
        for index, repeat in enumerate(self.repeats):
            repeat.propose(journal, record, folder, origin[FINISHED][repeat.trial.trial_id], index)


def find_finish(name: str, root: Path, draw: int, seed: int, data: str | None = None) -> Finish:
    """`draw` of the trials that a study (its name under `root`, or its folder) stopped early, drawn by `seed`.

    `data` says where its images lie now. Raises InputError when there is no such study, or it has stopped none.
    """
    if draw < 1:
        raise InputError(f"--sample must be at least 1, but got {draw}")
    study = load_study(folder := find_study(name, root))
    stopped = sorted(t.trial_id for t in study.trials.values() if t.status is Status.STOPPED and not t.broken)
    if not stopped:
        raise InputError(f"{folder} has no trial that was stopped early")
    drawn = random.Random(seed).sample(stopped, min(draw, len(stopped)))
    return Finish(tuple(find_repeat(str(folder), each, root, data) for each in drawn), len(stopped))


def outcome(record: StudyRecord) -> list[str]:
    """What a repeat or a finish found beside its record; empty for any other study, or where that is gone."""
    origin = record.header.get(ORIGIN) or {}
    if FINISHED not in origin:
        return comparison(record)
    try:
        was = load_study(Path(origin["study"]))
    except InputError as error:
        return [f"not held against the record: {error}"]
    pairs = [(was.trials[old], record.trials[new]) for old, new in origin[FINISHED].items() if old in was.trials]
    done = [(old, new) for old, new in pairs if new.status is Status.COMPLETED and not new.broken]
    lines = [f"{_named(old)}: {_verdict(was, old, new)}" for old, new in pairs]
    lost = sum(_would_stand(was, new) for _, new in done)
    return [*lines, _answer(lost, len(done), int(origin["stopped"]))]


def _named(trial: TrialRecord) -> str:
    size = f"{trial.counts['params']:,} parameters" if "params" in trial.counts else "unknown size"
    settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in trial.parameters.items()
                         if key.startswith("method.") and key != "method.name")  # fmt: skip
    return f"{trial.trial_id} ({trial.method}, {settings}; {size})" if settings else f"{trial.trial_id} ({size})"


def _verdict(was: StudyRecord, old: TrialRecord, new: TrialRecord) -> str:
    stopped = f"stopped after epoch {old.last_epoch} at {old.val_error:.2f} %"
    if new.status is not Status.COMPLETED or new.val_error is None:
        return f"{stopped}; {new.status.replace('_', ' ')} after epoch {new.last_epoch}"
    beaten = _best_as_small(was, new)
    front = "no point of the front is that small" if beaten is None else f"the front has {beaten:.2f} % at that size"
    where = "would stand on the front" if _would_stand(was, new) else "not on the front"
    return f"{stopped}; to its end {new.val_error:.2f} %, {front}: {where}"


def _best_as_small(was: StudyRecord, new: TrialRecord) -> float | None:
    """The lowest mean validation error on the front, in percent, of networks no larger than this one."""
    points = [seeds for seeds in front(was.trials.values()) if seeds[0].counts["params"] <= new.counts["params"]]
    return min(map(mean_error, points), default=None)


def _would_stand(was: StudyRecord, new: TrialRecord) -> bool:
    best = _best_as_small(was, new)
    return new.val_error is not None and (best is None or new.val_error < best)


def _answer(lost: int, done: int, stopped: int) -> str:
    if done == 0:
        return f"none of the {stopped} that were stopped has been trained to its end yet"
    stand = f"{lost or 'none'} would stand on it"
    return f"did stopping lose a point of the front? Of {done} of the {stopped} that were stopped, {stand}"
