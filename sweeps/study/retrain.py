"""Train recorded trials again: one to see whether it comes out the same, or stopped ones to their end.

`python sweeps/run.py --reproduce STUDY TRIAL` trains one trial again. `--retrain-stopped STUDY --sample 10 --seed 0`
draws ten of the trials that the study stopped early and trains each to its end. Both train the specification on record,
not a point of a space that resolves to it, in a study of their own with journal, tables, MLflow and `--resume`. At its
end `sweeps.study.retrain_report` compares the new results with the recorded ones.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.errors import InputError
from sweeps.records import (
    CHECKPOINT_FILE,
    REPEATABLE,
    TRIAL_WEIGHTS,
    TRIALS_FOLDER,
    Event,
    Journal,
    Role,
    Status,
    StudyRecord,
    TrialRecord,
    apply_event,
    find_study,
    find_trial,
    identify,
    load_study,
)
from sweeps.space import TEACHER_SECTION
from sweeps.trials import ResolvedTeacher, check_fingerprint

ORIGIN = "repeats"  # of a study's header: which trials of which study it trains again, and under which ids
RETRAINED_STOPPED = "finishes"  # of the origin: stopped trials, their ids there -> their ids here


@dataclass(frozen=True)
class RecordedTrial:
    """A trial to train again.

    `source` is the trial whose weights it starts from, where those weights are lost.
    """

    folder: Path  # of the study that trained it
    study: StudyRecord
    trial: TrialRecord
    source: TrialRecord | None = None
    specification: dict[str, Any] = field(default_factory=dict)  # as on record, but with today's paths

    def check(self, data: ImageData, teaching: ResolvedTeacher | None) -> str:
        """Check that images and teacher are those of the record.

        Args:
            data: the images.
            teaching: the teacher; None where the trial has none.

        Returns:
            The id under which the trial is trained. It differs from the recorded one where this version of the code
            builds another network or training; a printed line says so.

        Raises:
            InputError: images or teacher are others.
        """
        spec = self.specification
        if data.fingerprint != spec["data"]["fingerprint"]:
            raise InputError(
                f"{data.name} has the fingerprint {data.fingerprint}, but the trial was trained on "
                f"{spec['data']['fingerprint']}"
            )
        if TEACHER_SECTION in spec:
            assert teaching is not None  # the space names it
            if teaching.weights.sha256 != spec[TEACHER_SECTION]["weights"]:
                raise InputError(
                    f"the teacher {teaching.name} has changed since: its sha256 is {teaching.weights.sha256[:12]}..., "
                    f"not {spec[TEACHER_SECTION]['weights'][:12]}..."
                )
            spec[TEACHER_SECTION]["source"] = teaching.weights.reference
        trial_id, _ = identify(spec, data.image_shape, len(data.classes))
        if trial_id != self.trial.trial_id:
            print(f"this version of the code builds another network or training of that specification: {trial_id}")
        return trial_id

    def propose(self, journal: Journal, record: StudyRecord, folder: Path, trial_id: str, index: int = 0) -> None:
        """Journal the trial as proposed, and provide its initial weights.

        They are copied, or the trial that has them is proposed first.

        Args:
            journal: the new study's.
            record: the new study's, brought up to the journal.
            folder: the new study's.
            trial_id: the id under which it is trained.
            index: its row in the new study's grid.
        """
        initial_weights = str(self.specification.get("start", {}).get("from", ""))
        if initial_weights.startswith(TRIAL_WEIGHTS) and self.source is None:
            path = Path(TRIALS_FOLDER) / initial_weights.removeprefix(TRIAL_WEIGHTS) / CHECKPOINT_FILE
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / path, folder / path)
        if self.source is not None and self.source.trial_id not in record.trials:
            _propose(journal, record, self.source, self.source.trial_id, Role.REFERENCE, self.source.specification, {})
        _propose(journal, record, self.trial, trial_id, Role.SEARCH, self.specification, {"index": index})


def _propose(
    journal: Journal, record: StudyRecord, trial: TrialRecord, trial_id: str, role: Role,
    specification: Mapping[str, Any], proposal: Mapping[str, Any],
) -> None:  # fmt: skip
    event = journal.append(
        Event.PROPOSED, sync=True, trial=trial_id, stratum=trial.stratum, role=str(role), parameters=trial.parameters,
        specification=specification, counts=trial.counts, proposal=proposal, point_id=trial.point_id,
    )  # fmt: skip
    apply_event(record, event)


@dataclass(frozen=True)
class Retrain:
    """The trials of one study that are trained again.

    Make it by `select_trial` or `select_stopped`, or on resume by `select_again`.
    """

    trials: tuple[RecordedTrial, ...]
    stopped: int | None = None  # how many stopped trials they were drawn from; None for one trial to reproduce

    @property
    def folder(self) -> Path:
        """The folder of the study that has them on record."""
        return self.trials[0].folder

    @property
    def name(self) -> str:
        """The new study's name, unless the user gives one."""
        study = self.trials[0].study.name
        return f"{study}_{self.trials[0].trial.trial_id[:6]}" if self.stopped is None else f"{study}_finish"

    def specifications(self) -> list[Mapping[str, Any]]:
        """Return what is built: the specifications of the trials, and of those whose weights they start from."""
        sources = (recorded.source for recorded in self.trials if recorded.source is not None)
        return [*(recorded.specification for recorded in self.trials), *(trial.specification for trial in sources)]

    def content(self, resources: Mapping[str, Any]) -> dict[str, Any]:
        """Make the content of a space file around the trials.

        Nothing is drawn from that space: the specifications on record are trained.

        Args:
            resources: fields of the section `resources` that the user names.

        Returns:
            The content.
        """
        content, count = _content(self.trials[0], resources), len(self.trials)
        if self.stopped is not None:
            content["question"] = (
                f"{count} of the {self.stopped} trials that {self.trials[0].study.name} stopped early, trained to "
                "their end: did stopping lose a point of the front?"
            )
            content["search"] |= {"trials": count, "repeats": count}  # as many rows of the grid as there are trials
        return content

    def check(self, data: ImageData, teaching: ResolvedTeacher | None) -> dict[str, Any]:
        """Check that images and teacher are those of the record.

        Args:
            data: the images.
            teaching: the teacher; None where the trials have none.

        Returns:
            The new study's origin, for its header: which trials of which study it trains, and under which ids.

        Raises:
            InputError: images or teacher are others.
        """
        study = str(self.folder.resolve())
        if self.stopped is None:
            (reproduced,) = self.trials
            return {"study": study, "trial": reproduced.trial.trial_id, "as": reproduced.check(data, teaching)}
        ids = {recorded.trial.trial_id: recorded.check(data, teaching) for recorded in self.trials}
        return {"study": study, "stopped": self.stopped, RETRAINED_STOPPED: ids}

    def propose(self, journal: Journal, record: StudyRecord, folder: Path, origin: Mapping[str, Any]) -> None:
        """Journal the trials as proposed, but for those that are in the journal: a driver may have been killed here.

        Args:
            journal: the new study's.
            record: the new study's, brought up to the journal.
            folder: the new study's.
            origin: what `check` has returned.
        """
        for index, recorded in enumerate(self.trials):
            new = _retrained_ids(origin)[recorded.trial.trial_id]
            if new not in record.trials:
                recorded.propose(journal, record, folder, new, index)


def _retrained_ids(origin: Mapping[str, Any]) -> dict[str, str]:
    """Read the ids of an origin: those in the recorded study -> those in the study that trains them again."""
    return dict(origin[RETRAINED_STOPPED]) if RETRAINED_STOPPED in origin else {origin["trial"]: origin["as"]}


def select_again(origin: Mapping[str, Any], record: StudyRecord, data: str) -> Retrain | None:
    """Select the trials that a resumed study trains again, if some are not proposed yet.

    Args:
        origin: the study's, as `Retrain.check` has made it.
        record: the study's.
        data: where its images lie.

    Returns:
        The trials as they were drawn when the study began; None if all are in the journal, and the study whose trials
        they are is not needed any more.

    Raises:
        InputError: the recorded study or one of its trials is not there any more, or its record says too little.
    """
    ids, folder = _retrained_ids(origin), str(origin["study"])
    if all(new in record.trials for new in ids.values()):
        return None
    trials = tuple(_recorded_trial(folder, old, Path(folder).parent, data) for old in ids)
    return Retrain(trials, int(origin["stopped"]) if RETRAINED_STOPPED in origin else None)


def select_trial(name: str, trial_id: str, root: Path, data: str | None = None) -> Retrain:
    """Select one trial to reproduce.

    Args:
        name: the study, by its name under `root` or by its folder.
        trial_id: the trial's id or the beginning of it.
        root: the folder of studies.
        data: where its images lie now; None for where they lay.

    Returns:
        The selection.

    Raises:
        InputError: there is no such trial, its record says too little, or the weights that it starts from are gone and
            no record says how they were trained.
    """
    return Retrain((_recorded_trial(name, trial_id, root, data),))


def select_stopped(name: str, root: Path, sample: int, seed: int, data: str | None = None) -> Retrain:
    """Draw some of the trials that a study stopped early.

    Args:
        name: the study, by its name under `root` or by its folder.
        root: the folder of studies.
        sample: how many to draw; all where there are fewer.
        seed: of the draw.
        data: where the images lie now; None for where they lay.

    Returns:
        The selection.

    Raises:
        InputError: there is no such study, or it has stopped no trial.
    """
    if sample < 1:
        raise InputError(f"--sample must be at least 1, but got {sample}")
    study = load_study(folder := find_study(name, root))
    stopped = sorted(
        trial.trial_id for trial in study.trials.values() if trial.status is Status.STOPPED and not trial.broken
    )
    if not stopped:
        raise InputError(f"{folder} has no trial that was stopped early")
    drawn = random.Random(seed).sample(stopped, min(sample, len(stopped)))
    trials = tuple(_recorded_trial(str(folder), trial_id, root, data) for trial_id in drawn)
    return Retrain(trials, len(stopped))


def _recorded_trial(name: str, trial_id: str, root: Path, data: str | None) -> RecordedTrial:
    folder = find_study(name, root)
    study = load_study(folder)
    trial = find_trial(study, trial_id)
    missing = [key for key in REPEATABLE if key not in trial.specification]
    if missing:
        raise InputError(f"trial {trial.trial_id} cannot be trained again: its record has no {', '.join(missing)}")
    specification = copy.deepcopy(trial.specification)
    source = _lost_source(folder, study, specification)
    if source is not None:
        source = replace(source, specification=copy.deepcopy(source.specification))
    if data is not None:  # both are trained on the images where they lie now
        for section in (specification["data"], *([source.specification["data"]] if source else [])):
            section["name"] = data
    return RecordedTrial(folder, study, trial, source, specification)


def _lost_source(folder: Path, study: StudyRecord, specification: Mapping[str, Any]) -> TrialRecord | None:
    """The trial to train first because the weights to start from are gone; None where they are there."""
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
    check_fingerprint(specification, None)
    return None


def _content(recorded: RecordedTrial, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a space file around one trial."""
    spec = recorded.specification
    method = spec["method"]
    if "allocation" in spec:  # each group of layers has a method of its own; the space needs one, and trains none
        method = next(iter(spec["allocation"]["methods"].values()))
    content: dict[str, Any] = {
        "question": f"Trial {recorded.trial.trial_id} of {recorded.study.name} once more: does it come out the same?",
        "data": {key: value for key, value in spec["data"].items() if key != "fingerprint"},
        "network": dict(spec["network"]),
        "train": dict(spec["train"]),
        "method": {key: value for key, value in method.items() if value is not None},
        "references": [],
        "search": {"sampler": "grid", "trials": 1, "stop": "none", "seed": spec["views"]["seed"]},
        "resources": {**_resources(recorded), **resources},
    }
    if "start" in spec:  # an untrained network of 0 epochs would be refused; nothing is drawn from this section
        content["start"] = {"how": "dense", "weights": str(spec["start"]["from"])}
    if TEACHER_SECTION in spec:
        content[TEACHER_SECTION] = _teacher(spec[TEACHER_SECTION])
    return content


def _resources(recorded: RecordedTrial) -> dict[str, Any]:
    """The resources on record: the number of threads decides in which order sums are taken."""
    trial, space = recorded.trial, recorded.study.header.get("space") or {}
    resources = dict(space.get("resources") or {})
    if trial.last_attempt("cpus") is not None:
        resources["cpus_per_trial"] = trial.last_attempt("cpus")
    if trial.last_attempt("device") == "cpu":
        resources["gpus_per_trial"] = 0
    return {key: value for key, value in resources.items() if value is not None}


def _teacher(section: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher by its path, or by its name where that path is gone.

    It may be unverified: what it was trained on was checked when the recorded study began.
    """
    source = str(section["source"])
    is_present = Path(source).exists() or not source.startswith("/")
    settings = {
        "name": source if is_present else section["name"], "network": section.get("own_network"),
        "views": section.get("views"), "taps": section["taps"], "student_taps": section["student_taps"],
        "unchecked": True,
    }  # fmt: skip
    if network := section.get("network"):  # of a file of weights alone
        settings |= {"name": None, "weights": source, "network": network["name"], "width": network["width"]}
    return {key: value for key, value in settings.items() if value not in (None, [])}
