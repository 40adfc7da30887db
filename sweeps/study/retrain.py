"""Train recorded trials again: one to see whether it comes out the same, or stopped ones to their end.

`python sweeps/run.py --reproduce STUDY TRIAL` trains one trial again. `--retrain-stopped STUDY --sample 10 --seed 0`
draws ten of the trials that the study stopped early and trains each to its end. Both train the specification on record,
not a point of a space that resolves to it, in a study of their own with journal, tables, MLflow and `--resume`. At its
end `sweeps.study.retrain_report` compares the new results with the recorded ones.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.errors import InputError
from sweeps.records import (
    CHECKPOINT_FILE,
    TRIALS_FOLDER,
    Event,
    Journal,
    Role,
    Status,
    StudyRecord,
    TeacherSection,
    TrialRecord,
    TrialSpec,
    apply_event,
    find_study,
    find_trial,
    identify,
    load_study,
)
from sweeps.space import TEACHER_SECTION, RetrainOrigin
from sweeps.trials import ResolvedTeacher, check_fingerprint


@dataclass(frozen=True)
class RecordedTrial:
    """A trial to train again.

    `source` is the trial whose weights it starts from, where those weights are lost.
    """

    folder: Path  # of the study that trained it
    study: StudyRecord
    trial: TrialRecord
    specification: TrialSpec  # as on record, but with today's paths
    source: TrialRecord | None = None

    def with_teacher(self, teaching: ResolvedTeacher | None) -> RecordedTrial:
        """Say where the teacher's weights lie now.

        Args:
            teaching: the teacher; None where the trial has none.

        Returns:
            The trial with that place in its specification.
        """
        section = self.specification.teacher
        if section is None or teaching is None:
            return self
        section = section.model_copy(update={"source": teaching.weights.reference})
        return replace(self, specification=self.specification.model_copy(update={"teacher": section}))

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
        if data.fingerprint != spec.data.fingerprint:
            raise InputError(
                f"{data.name} has the fingerprint {data.fingerprint}, but the trial was trained on "
                f"{spec.data.fingerprint}"
            )
        if spec.teacher is not None:
            assert teaching is not None  # the space names it
            if teaching.weights.sha256 != spec.teacher.weights:
                raise InputError(
                    f"the teacher {teaching.name} has changed since: its sha256 is {teaching.weights.sha256[:12]}..., "
                    f"not {spec.teacher.weights[:12]}..."
                )
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
        start = self.specification.start
        if start is not None and start.trial_id is not None and self.source is None:
            path = Path(TRIALS_FOLDER) / start.trial_id / CHECKPOINT_FILE
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / path, folder / path)
        if self.source is not None and self.source.trial_id not in record.trials:
            assert self.source.specification is not None  # _lost_source has checked it
            _propose(journal, record, self.source, self.source.trial_id, Role.REFERENCE, self.source.specification, {})
        _propose(journal, record, self.trial, trial_id, Role.SEARCH, self.specification, {"index": index})


def _propose(
    journal: Journal, record: StudyRecord, trial: TrialRecord, trial_id: str, role: Role,
    specification: TrialSpec, proposal: Mapping[str, Any],
) -> None:  # fmt: skip
    event = journal.append(
        Event.PROPOSED, sync=True, trial=trial_id, stratum=trial.stratum, role=str(role), parameters=trial.parameters,
        specification=specification.to_json(), counts=trial.counts, proposal=proposal, point_id=trial.point_id,
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

    def specifications(self) -> list[TrialSpec | None]:
        """Return what is built: the specifications of the trials, and of those whose weights they start from."""
        sources = (recorded.source for recorded in self.trials if recorded.source is not None)
        return [*(recorded.specification for recorded in self.trials), *(trial.specification for trial in sources)]

    def content(self, resources: Mapping[str, Any]) -> dict[str, object]:
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
            search = content["search"]
            assert isinstance(search, dict)  # _content has made it
            search |= {"trials": count, "repeats": count}  # as many rows of the grid as there are trials
        return content

    def check(self, data: ImageData, teaching: ResolvedTeacher | None) -> RetrainOrigin:
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
            new_trial = reproduced.check(data, teaching)
            return RetrainOrigin.parse({"study": study, "trial": reproduced.trial.trial_id, "as": new_trial})
        ids = {recorded.trial.trial_id: recorded.check(data, teaching) for recorded in self.trials}
        return RetrainOrigin.parse({"study": study, "stopped": self.stopped, "finishes": ids})

    def with_teacher(self, teaching: ResolvedTeacher | None) -> Retrain:
        """Say where the teacher's weights lie now.

        Args:
            teaching: the teacher; None where the trials have none.

        Returns:
            The same trials with that place in their specifications.
        """
        return replace(self, trials=tuple(recorded.with_teacher(teaching) for recorded in self.trials))

    def propose(self, journal: Journal, record: StudyRecord, folder: Path, origin: RetrainOrigin) -> None:
        """Journal the trials as proposed, but for those that are in the journal: a driver may have been killed here.

        Args:
            journal: the new study's.
            record: the new study's, brought up to the journal.
            folder: the new study's.
            origin: what `check` has returned.
        """
        for index, recorded in enumerate(self.trials):
            new = origin.ids[recorded.trial.trial_id]
            if new not in record.trials:
                recorded.propose(journal, record, folder, new, index)


def select_again(origin: RetrainOrigin, record: StudyRecord, data: str) -> Retrain | None:
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
    folder = origin.study
    if all(new in record.trials for new in origin.ids.values()):
        return None
    trials = tuple(_recorded_trial(folder, old, Path(folder).parent, data) for old in origin.ids)
    return Retrain(trials, origin.stopped)


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
    specification = trial.specification
    if specification is None:
        raise InputError(f"trial {trial.trial_id} cannot be trained again: its record has no specification")
    source = _lost_source(folder, study, specification)
    if data is not None:  # both are trained on the images where they lie now
        specification = _with_data(specification, data)
        if source is not None and source.specification is not None:
            source = replace(source, specification=_with_data(source.specification, data))
    return RecordedTrial(folder, study, trial, specification, source)


def _with_data(specification: TrialSpec, name: str) -> TrialSpec:
    images = specification.data.model_copy(update={"name": name})
    return specification.model_copy(update={"data": images})


def _lost_source(folder: Path, study: StudyRecord, specification: TrialSpec) -> TrialRecord | None:
    """The trial to train first because the weights to start from are gone; None where they are there."""
    start = specification.start
    if start is None:
        return None
    if start.trial_id is not None:
        if (folder / TRIALS_FOLDER / start.trial_id / CHECKPOINT_FILE).is_file():
            return None
        if start.trial_id not in study.trials:
            raise InputError(f"the trial {start.trial_id}, from whose weights it starts, is not in {folder}")
        source = study.trials[start.trial_id]
        if source.specification is None:
            raise InputError(
                f"the trial {start.trial_id}, from whose weights it starts, has no specification on record"
            )
        return source
    check_fingerprint(specification, None)
    return None


def _content(recorded: RecordedTrial, resources: Mapping[str, Any]) -> dict[str, object]:
    """The content of a space file around one trial."""
    spec = recorded.specification
    sections: Mapping[str, Any] = spec.to_json()
    method = spec.method
    if (
        spec.allocation is not None
    ):  # each group of layers has a method of its own; the space needs one, and trains none
        method = next(iter(spec.allocation.methods.values()))
    content: dict[str, object] = {
        "question": f"Trial {recorded.trial.trial_id} of {recorded.study.name} once more: does it come out the same?",
        "data": {key: value for key, value in sections["data"].items() if key != "fingerprint"},
        "network": sections["network"],
        "train": sections["train"],
        "method": {key: value for key, value in method.settings().items() if value is not None},
        "references": [],
        "search": {"sampler": "grid", "trials": 1, "stop": "none", "seed": spec.views.seed},
        "resources": {**_resources(recorded), **resources},
    }
    if spec.start is not None:  # an untrained network of 0 epochs would be refused; nothing is drawn from this section
        content["start"] = {"how": "dense", "weights": spec.start.source}
    if spec.teacher is not None:
        content[TEACHER_SECTION] = _teacher(spec.teacher)
    return content


def _resources(recorded: RecordedTrial) -> dict[str, object]:
    """The resources on record: the numbers of threads and processes decide in which order sums are taken."""
    trial, resources = recorded.trial, dict(recorded.study.header.section("resources"))
    if trial.last_attempt("cpus") is not None:
        resources["cpus_per_trial"] = trial.last_attempt("cpus")
    if trial.last_attempt("device") == "cpu":
        resources["gpus_per_trial"] = 0
        if trial.last_attempt("processes") is not None:  # a resume may have changed it
            resources["processes_per_trial"] = trial.last_attempt("processes")
    return {key: value for key, value in resources.items() if value is not None}


def _teacher(section: TeacherSection) -> dict[str, object]:
    """The teacher by its path, or by its name where that path is gone.

    It may be unverified: what it was trained on was checked when the recorded study began.
    """
    source = str(section.source)
    is_present = Path(source).exists() or not source.startswith("/")
    settings: dict[str, object] = {
        "name": source if is_present else section.name, "network": section.own_network, "views": section.views,
        "taps": list(section.taps), "student_taps": list(section.student_taps), "unchecked": True,
    }  # fmt: skip
    if network := section.network:  # of a file of weights alone
        settings |= {"name": None, "weights": source, "network": network.name, "width": network.width}
    return {key: value for key, value in settings.items() if value not in (None, [])}
