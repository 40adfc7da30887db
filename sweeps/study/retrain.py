"""A recorded trial once more, whatever it was: taught, of an uneven allocation, from dense weights, of another seed.

`python sweeps/run.py --reproduce STUDY TRIAL` trains the specification on record, not a point of a space that
resolves to it. It is a study of its own, of one trial (and of the network that this one starts from, where that is not
there any more), with journal, tables, MLflow and `--resume` like any other; at its end it is held against the record.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.errors import InputError
from sweeps.records.journal import Journal
from sweeps.records.load import find_study, find_trial, load_study
from sweeps.records.names import (
    CHECKPOINT_FILE,
    MACHINE_METRICS,
    TRIALS_FOLDER,
    Event,
    Role,
    StudyRecord,
    TrialRecord,
    apply_event,
)
from sweeps.records.specification import REPEATABLE, TRIAL_WEIGHTS, identify
from sweeps.space.teacher_settings import SECTION
from sweeps.trials.teacher import Teaching

ORIGIN = "repeats"  # of a study's header: which trial of which study it trains once more, and under which id


@dataclass(frozen=True)
class Repeat:
    """What is trained again: the trial, and the one whose weights it starts from where those are lost."""

    folder: Path  # of the study that has it
    study: StudyRecord
    trial: TrialRecord
    source: TrialRecord | None = None
    specification: dict[str, Any] = field(default_factory=dict)  # as on record, but for where things lie

    @property
    def name(self) -> str:
        """Of the new study, unless the user names it."""
        return f"{self.study.name}_{self.trial.trial_id[:6]}"

    def content(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a space file around the trial; `resources` are those that the user names."""
        return content_of(self, resources)

    def check(self, data: ImageData, teaching: Teaching | None) -> dict[str, Any]:
        """The new study's origin, once images and teacher are known to be those of the record; raises InputError."""
        as_ = check_repeat(self, data, teaching)
        return {"study": str(self.folder.resolve()), "trial": self.trial.trial_id, "as": as_}

    def begin(self, journal: Journal, record: StudyRecord, folder: Path, origin: Mapping[str, Any]) -> None:
        """Propose it in the new study's journal."""
        self.propose(journal, record, folder, origin["as"])

    def propose(self, journal: Journal, record: StudyRecord, folder: Path, trial_id: str, index: int = 0) -> None:
        """Propose it under `trial_id`, as the proposal `index`, with the weights that it starts from beside it."""
        start = str(self.specification.get("start", {}).get("from", ""))
        if start.startswith(TRIAL_WEIGHTS) and self.source is None:
            place = Path(TRIALS_FOLDER) / start.removeprefix(TRIAL_WEIGHTS) / CHECKPOINT_FILE
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / place, folder / place)
        proposal = {"index": index}
        for trial, spec in ((self.source, {}), (self.trial, self.specification)):
            if trial is None:
                continue
            own = trial is self.trial
            proposed = journal.append(
                Event.PROPOSED, sync=True, trial=trial_id if own else trial.trial_id, stratum=trial.stratum,
                role=str(Role.SEARCH if own else Role.REFERENCE), parameters=trial.parameters,
                specification=spec or trial.specification, counts=trial.counts, proposal=proposal if own else {},
                point_id=trial.point_id,
            )  # fmt: skip
            apply_event(record, proposed)


def find_repeat(name: str, trial_id: str, root: Path, data: str | None = None) -> Repeat:
    """The trial of a study (its name under `root`, or its folder), and what it starts from.

    `data` says where its images lie now.

    Raises:
        InputError: there is no such trial, its record says too little, or the weights that it starts from are gone and
            nothing says how they were trained.
    """
    folder = find_study(name, root)
    study = load_study(folder)
    trial = find_trial(study, trial_id)
    missing = [each for each in REPEATABLE if each not in trial.specification]
    if missing:
        raise InputError(f"trial {trial.trial_id} cannot be repeated: its record has no {', '.join(missing)}")
    specification = copy.deepcopy(trial.specification)
    if data is not None:
        specification["data"]["name"] = data
    return Repeat(folder, study, trial, _source(folder, study, specification), specification)


def _source(folder: Path, study: StudyRecord, specification: Mapping[str, Any]) -> TrialRecord | None:
    """The trial that must be trained first, because the weights to start from are not there any more."""
    start = specification.get("start")
    if start is None:
        return None
    source = str(start["from"])
    if source.startswith(TRIAL_WEIGHTS):
        trial_id = source.removeprefix(TRIAL_WEIGHTS)
        if (folder / TRIALS_FOLDER / trial_id / CHECKPOINT_FILE).is_file():
            return None
        if trial_id not in study.trials:
            raise InputError(f"the trial {trial_id}, from whose weights it starts, is not in {folder}")
        return study.trials[trial_id]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"the weights to start from are not there: {path}")
    if hashlib.sha256(path.read_bytes()).hexdigest()[:16] != start["fingerprint"]:
        raise InputError(f"the weights to start from have changed since: {path}")
    return None


def content_of(repeat: Repeat, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a space file around the trial: of its point nothing is drawn, the specification is on record."""
    spec = repeat.specification
    method = spec["method"]
    if "allocation" in spec:  # each group of layers has its own: a space of the first is as good as any
        method = next(iter(spec["allocation"]["methods"].values()))
    content: dict[str, Any] = {
        "question": f"Trial {repeat.trial.trial_id} of {repeat.study.name} once more: does it come out the same?",
        "data": {key: value for key, value in spec["data"].items() if key != "fingerprint"},
        "network": dict(spec["network"]),
        "train": dict(spec["train"]),
        "method": {key: value for key, value in method.items() if value is not None},
        "references": [],
        "search": {"sampler": "grid", "trials": 1, "stop": "none", "seed": spec["views"]["seed"]},
        "resources": {**_resources(repeat), **resources},
    }
    if SECTION in spec:
        content[SECTION] = _teacher(spec[SECTION])
    return content


def _resources(repeat: Repeat) -> dict[str, Any]:
    """As on record: the number of threads decides in which order sums are taken."""
    trial, asked = repeat.trial, (repeat.study.header.get("space") or {}).get("resources") or {}
    found = dict(asked)
    if trial.last_attempt("cpus") is not None:
        found["cpus_per_trial"] = trial.last_attempt("cpus")
    if trial.last_attempt("device") == "cpu":
        found["gpus_per_trial"] = 0
    return {key: value for key, value in found.items() if value is not None}


def _teacher(section: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher where it lay, or else by its name; what it was trained on was checked when the study began."""
    source = str(section["source"])
    there = Path(source).exists() or not source.startswith("/")
    found = {
        "name": source if there else section["name"], "network": section.get("own_network"),
        "views": section.get("views"), "taps": section["taps"], "student_taps": section["student_taps"],
        "unchecked": True,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in (None, [])}


def check_repeat(repeat: Repeat, data: ImageData, teaching: Teaching | None) -> str:
    """The id under which it is trained, once images and teacher are known to be those of the record.

    Raises:
        InputError: they are others.
    """
    spec = repeat.specification
    if data.fingerprint != spec["data"]["fingerprint"]:
        raise InputError(
            f"{data.name} has the fingerprint {data.fingerprint}, but the trial was trained on "
            f"{spec['data']['fingerprint']}"
        )
    if SECTION in spec:
        assert teaching is not None  # the space names it
        if teaching.found.sha256 != spec[SECTION]["weights"]:
            raise InputError(
                f"the teacher {teaching.name} has changed since: its sha256 is {teaching.found.sha256[:12]}..., not "
                f"{spec[SECTION]['weights'][:12]}..."
            )
        spec[SECTION]["source"] = teaching.found.reference
    trial_id, _ = identify(spec, data)
    if trial_id != repeat.trial.trial_id:
        print(f"this version of the code builds another network or training of that specification: {trial_id}")
    return trial_id


def comparison(record: StudyRecord) -> list[str]:
    """How the trial of a repeat came out beside the one on record; empty for any other study, or where that is gone."""
    origin = record.header.get(ORIGIN)
    if not origin or origin["as"] not in record.trials:
        return []
    try:
        was = find_trial(load_study(Path(origin["study"])), origin["trial"])
    except InputError as error:
        return [f"not held against the record: {error}"]
    now = record.trials[origin["as"]]
    return [f"trial {was.trial_id} of {origin['study']}: {_errors(was, now)}", *_epochs(was, now)]


def _errors(was: TrialRecord, now: TrialRecord) -> str:
    def shown(trial: TrialRecord) -> str:
        error = "no error" if trial.val_error is None else f"{trial.val_error:.4g} % validation error"
        test = "" if trial.test_error is None else f", {trial.test_error:.4g} % test error"
        return f"{error}{test}, {trial.status.replace('_', ' ')} after epoch {trial.last_epoch}"

    return f"on record {shown(was)}; now {shown(now)}"


def _epochs(was: TrialRecord, now: TrialRecord) -> list[str]:
    both = sorted(was.epochs.keys() & now.epochs.keys())
    first = next((epoch for epoch in both if _outcome(was.epochs[epoch]) != _outcome(now.epochs[epoch])), None)
    if first is None:
        return [f"all {len(both)} epochs that both have came out the same, to the last digit of every error and loss"]
    devices = [str(trial.last_attempt("device") or "an unknown device") for trial in (was, now)]
    why = f"on record on {devices[0]}, now on {devices[1]}"
    if devices == ["cuda", "cuda"]:
        why = "on a GPU sums are not always taken in the same order"
    return [f"they differ from epoch {first} on ({why})"]


def _outcome(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in MACHINE_METRICS and name != "time"}
