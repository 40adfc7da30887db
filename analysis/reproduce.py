"""How to train one point of a study again: a space file that holds nothing but it, and the command that runs it.

A trial's id is the hash of what is built and trained, so the command's study holds a trial of the same id.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.front import FrontPoint
from sweeps.records import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The space file of one trial and its command; `why_not` says why there can be none ("" when there is)."""

    trial_id: str
    name: str
    file: str
    text: str
    command: str
    why_not: str = ""


def recipes(study: StudyRecord, points: Iterable[FrontPoint], folder: Path) -> list[Recipe]:
    """A recipe a point; `folder` is where the files will lie, as the reader would type it."""
    return [recipe(study, study.trials[point.trial_id], point.name, folder) for point in points]


def recipe(study: StudyRecord, trial: TrialRecord, name: str, folder: Path) -> Recipe:
    """The recipe of one trial."""
    path = folder / f"{trial.trial_id}.yaml"
    why_not = _why_not(trial)
    text = "" if why_not else yaml.safe_dump(space_of(study, trial), sort_keys=False, allow_unicode=True, width=100)
    return Recipe(
        trial_id=trial.trial_id, name=name, file=path.name, text=text, why_not=why_not,
        command="" if why_not else f"python sweeps/run.py --space {shlex.quote(str(path))}",
    )  # fmt: skip


def _why_not(trial: TrialRecord) -> str:
    spec = trial.specification
    missing = [name for name in ("network", "method", "train", "data", "seed") if name not in spec]
    if missing:
        return f"its record has no {', '.join(missing)}"
    if "allocation" in spec:
        return "its budget is shared unevenly among the layers: train its study again"
    if "start" in spec:
        return "it starts from the weights of another trial: train its study again"
    if "teacher" in spec:
        return "it learns from a teacher, which a space file of its own does not know: train its study again"
    seeds = spec["seed"], spec.get("views", {}).get("seed", spec["seed"])
    if seeds[0] != seeds[1]:
        return f"it is the repeat of seed {seeds[0]} of a study of seed {seeds[1]}: train the study's repeats again"
    return ""


def space_of(study: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    """The content of a space file (search_spaces/README.md) whose only point is this trial."""
    spec = trial.specification
    content: dict[str, Any] = {
        "question": f"Trial {trial.trial_id} of {study.name} once more: does it come out the same?",
        "data": {key: value for key, value in spec["data"].items() if key != "fingerprint"},
        "network": dict(spec["network"]),
        "train": dict(spec["train"]),  # as it was resolved: what it leaves out (views) follows from the data set
        "method": {key: value for key, value in spec["method"].items() if value is not None},
        "references": [],
        "search": {"sampler": "grid", "trials": 1, "stop": "none", "seed": spec["seed"]},
    }
    resources = study.header.get("space", {}).get("resources")
    if resources:
        content["resources"] = dict(resources)
    return content
