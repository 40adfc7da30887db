"""A study's runs in MLflow: one parent run for the study, one child run for each trial, found again by their tags.

Everything here may be repeated: runs are looked up before they are made, MLflow itself stores parameters and metrics of
equal key and value once, and tags, data sets and artifacts are overwritten with the same content. Names are in
`sweeps.records.mlflow_names`. The step of a metric is its epoch (from 1).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lowrank.utils import first_line
from sweeps.records import (
    ARTIFACTS_FOLDER,
    EPOCHS_FILE,
    FRONT_PICTURE,
    REPORT_FOLDER,
    RESULTS_FILE,
    SUMMARY_TABLE,
    TERMINAL,
    Event,
    Status,
    StudyRecord,
    TrialRecord,
    mlflow_names as names,
    study_fields,
    trial_fields,
)
from sweeps.tracking.mlflow_adapter import delete_artifacts
from sweeps.tracking.mlflow_registry import register_front
from sweeps.tracking.mlflow_store import MESSAGE_LENGTH, is_refusal, make_client, milliseconds, outages

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag

BATCH = 500  # metrics in one call; MLflow takes 1,000 in at most 1 MB
SMALL_BATCH = 100  # parameters or tags in one call
ARTIFACTS = (FRONT_PICTURE, SUMMARY_TABLE, RESULTS_FILE, EPOCHS_FILE)  # of the parent, beside the report
RUN_STATUS = {
    Status.PROPOSED: "RUNNING",
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "FINISHED",
    Status.STOPPED: "FINISHED",
    Status.DIVERGED: "FAILED",
    Status.OUT_OF_MEMORY: "FAILED",
    Status.FAILED: "FAILED",
}
KILLED, FAILED = "KILLED", "FAILED"
DATASET_CONTEXT_TAG = "mlflow.data.context"  # MLflow's interface shows its value as what a run used the data for
SPLIT_SIZES = ("train_images", "val_images", "test_images", "classes")


@dataclass(frozen=True)
class Entry:
    """One journal event to be carried into MLflow."""

    offset: int  # of the journal's next line
    event: Event
    time: float
    trial: str | None = None
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class MlflowStudy:
    """The runs of one study in one store.

    Every method may raise one of `outages()`, and may then be called again.
    """

    def __init__(
        self,
        uri: str,
        study_dir: Path,
        study: StudyRecord,
        key: str,
        refused: Mapping[str, str] | None = None,
        again: bool = False,
    ):
        """Find the study's runs in the store; the experiment and the parent run are made if they are missing.

        Args:
            uri: the store's address.
            study_dir: the study's folder.
            study: the study, as far as its journal has been read.
            key: tells this study from others of the same name; the parent run has it as a tag.
            refused: records that this store has refused for good, and why.
            again: describe known runs again, so that refused records are sent once more.
        """
        self.uri, self.study_dir, self.study, self.key = uri, study_dir, study, key
        self.client = make_client(uri, study_dir)
        self._again = again
        self.refused = dict(refused or {})  # records that this store will never take, and why
        self.artifact_error = ""  # why artifacts are missing, one line
        self._due: dict[str, Callable[[], None]] = {}  # artifacts that are not stored yet
        self._stored_states: dict[str, tuple[Any, ...]] = {}  # by run id
        self._descriptions: dict[str, str] = {}  # by run id: what the records said when this object last wrote it
        self._complete: set[str] = set()  # ids of runs whose record is stored
        self._tables = ""  # the present value of the parent's tag
        self.experiment = self._experiment()
        self.parent = self._find_parent()
        self.runs: dict[str, str] = {}  # trial id -> run id
        self._load_children()

    def carry(self, entries: Sequence[Entry]) -> None:
        """Store entries, in their order by trial.

        What the store refuses for good is added to `refused`.

        Args:
            entries: the next ones of the journal.
        """
        points: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.trial is not None:
                points[entry.trial].append(entry)
        if entries:
            self._set_tables_tag(names.BEHIND)
        study_events = {entry.event for entry in entries if entry.trial is None}
        if Event.STUDY in study_events:
            self._begin_parent()
        if Event.ANNOTATED in study_events:
            self._describe_parent()
        if any(entry.event is Event.INFEASIBLE for entry in entries):
            self._due[names.INFEASIBLE_FILE] = self._store_infeasible
        if Event.ANNOTATED in study_events or (Event.CLOSED in study_events and self.study.closed):
            points.update({trial_id: [] for trial_id in self.study.trials if trial_id not in points})
        for trial_id, trial_entries in points.items():
            self._carry_trial(self.study.trials[trial_id], trial_entries)
        self._store_artifacts()

    def close(self, at: float) -> None:
        """Give the parent run its results and its end.

        These are the summary, pictures, tables and the best models.

        Args:
            at: the time of the newest event in seconds: a later summary replaces an earlier one.
        """
        closed = self.study.closed
        if closed is None:
            return
        self._metrics(self.parent, "the summary", names.study_metrics(self.study), milliseconds(at), step=0)
        self._due |= {names.INFEASIBLE_FILE: self._store_infeasible, names.STUDY_FILE: self._store_study}
        for path, artifact_folder in self._artifacts():
            self._due[str(path)] = partial(self.client.log_artifact, self.parent, str(path), artifact_folder)
        self._due["the files of an earlier report"] = self._delete_outdated
        self._due["the best models"] = partial(
            register_front, self.client, self.experiment, self.study, self.study_dir, self.runs
        )
        status = {"finished": "FINISHED", "failed": FAILED}.get(str(closed.get("reason")), KILLED)
        self.client.set_terminated(self.parent, status, milliseconds(closed["time"]))
        self._store_artifacts()
        if not self._due:
            self._set_tables_tag(names.CURRENT)

    def abandon(self, at: float) -> None:
        """Mark the runs without an end as killed.

        Call it when the driver has died without closing the study.

        Args:
            at: the time of the newest event in seconds.
        """
        for trial_id, run_id in self.runs.items():
            if self.study.trials[trial_id].status not in TERMINAL:
                self.client.set_terminated(run_id, KILLED, milliseconds(at))
        self.client.set_terminated(self.parent, KILLED, milliseconds(at))

    @property
    def missing_artifacts(self) -> list[str]:
        """Names of the artifacts that the store has not taken."""
        return list(self._due)

    # Finding runs that the store has

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(self.study.name)
        if experiment is None:
            is_local = urlsplit(self.uri).scheme not in ("http", "https")
            location = (self.study_dir / ARTIFACTS_FOLDER).resolve().as_uri() if is_local else None
            tags = {**names.KIND_TAGS, names.DESCRIPTION_TAG: self.study.header.question}
            return str(self.client.create_experiment(self.study.name, artifact_location=location, tags=tags))
        if experiment.lifecycle_stage == "deleted":
            raise OSError(f"the MLflow experiment {self.study.name!r} was deleted; restore it or name another store")
        return str(experiment.experiment_id)

    def _find_parent(self) -> str:
        runs = self._search(f"tags.{names.KEY_TAG} = '{self.key}'")
        if runs:
            return self._delete_duplicates(runs)
        name = self.study.name
        tags = {names.STUDY_TAG: name, names.KEY_TAG: self.key}
        start = milliseconds(self.study.header.began)
        return str(self.client.create_run(self.experiment, start, tags, run_name=name).info.run_id)

    def _load_children(self) -> None:
        by_trial: dict[str, list[Run]] = defaultdict(list)
        for run in self._search(f"tags.`{names.PARENT_TAG}` = '{self.parent}'"):
            by_trial[run.data.tags.get(names.TRIAL_TAG, "")].append(run)
        for trial_id, runs in by_trial.items():
            if trial_id in self.study.trials:
                self.runs[trial_id] = self._delete_duplicates(runs)
                run = next(run for run in runs if run.info.run_id == self.runs[trial_id])
                if self._again or names.COMPLETE_TAG not in run.data.tags:
                    self._describe(self.study.trials[trial_id], self.runs[trial_id])

    def _search(self, rule: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], rule, max_results=1000, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _delete_duplicates(self, runs: list[Run]) -> str:
        """Keep the run with most content: a call that timed out may have made another, of which nobody knew."""
        runs = sorted(
            runs,
            key=lambda run: (-len(run.data.metrics) - len(run.data.params) - len(run.data.tags), run.info.run_id),
        )
        for duplicate in runs[1:]:
            self.client.delete_run(duplicate.info.run_id)
        return str(runs[0].info.run_id)

    # Runs

    def _begin_parent(self) -> None:
        self._describe_parent()
        self._add_dataset(self.parent)
        self.client.update_run(self.parent, "RUNNING")

    def _describe_parent(self) -> None:
        tags = self._with_description(self.parent, names.study_tags(self.study), self.study)
        self._log(self.parent, "the study", tags=tags)
        self._due[names.STUDY_FILE] = self._store_study

    def _store_study(self) -> None:
        self.client.log_dict(self.parent, study_fields(self.study), names.STUDY_FILE)

    def _set_tables_tag(self, state: str) -> None:
        """Tell readers of the store whether the parent's tables are current."""
        if state != self._tables:
            self.client.set_tag(self.parent, names.TABLES_TAG, state)
            self._tables = state

    def _carry_trial(self, trial: TrialRecord, entries: Sequence[Entry]) -> None:
        was_launched = bool(trial.attempts or trial.epochs or trial.status in TERMINAL)
        if trial.status is Status.INFEASIBLE or not (was_launched or self.study.closed):
            return
        if trial.trial_id not in self.runs:
            self._create(trial)
        elif any(entry.event is Event.INITIAL for entry in entries):
            self._store_initial(trial)
        elif trial.removed and any(entry.event is Event.FINISHED for entry in entries):
            self._store_sizes(trial)  # of what is left of variational layers
        run_id = self.runs[trial.trial_id]
        points = [point for entry in entries for point in _points(entry)]
        status, tags = self._run_status(trial), names.trial_tags(self.study, trial)
        state = (status, tags, tuple(trial.notices), trial.test_error)
        if state == self._stored_states.get(run_id):
            self._log(run_id, trial.trial_id, points)
            return
        marked = any(entry.event is Event.EXCLUDED for entry in entries)
        described = self._with_description(run_id, tags, trial, again=marked)
        self._log(run_id, trial.trial_id, points, tags=described)
        self._set_status(run_id, trial, status)
        self._due[f"record of {trial.trial_id}"] = partial(self._store_record, trial, run_id)
        self._stored_states[run_id] = state

    def _with_description(
        self, run_id: str, tags: Mapping[str, str], record: StudyRecord | TrialRecord, *, again: bool = False
    ) -> dict[str, str]:
        """The tags with what people have typed into the description in MLflow; without it where it does not change."""
        recorded = tags[names.DESCRIPTION_TAG]
        if self._descriptions.get(run_id, "") == recorded and not again:
            return {name: value for name, value in tags.items() if name != names.DESCRIPTION_TAG}
        stored = self.client.get_run(run_id).data.tags.get(names.DESCRIPTION_TAG, "")
        self._descriptions[run_id] = recorded
        return {**tags, names.DESCRIPTION_TAG: names.join_description(stored, names.recorded_paragraphs(record))}

    def _create(self, trial: TrialRecord) -> None:
        tags = names.identity_tags(self.study, trial, self.parent)
        started = trial.attempts[0]["time"] if trial.attempts else trial.proposed_at
        start = milliseconds(started or self.study.header.began)
        run = self.client.create_run(self.experiment, start, tags, run_name=names.run_name(trial))
        self.runs[trial.trial_id] = str(run.info.run_id)
        self._describe(trial, self.runs[trial.trial_id])

    def _describe(self, trial: TrialRecord, run_id: str) -> None:
        self._store_sizes(trial)
        self._store_initial(trial)
        self._add_dataset(run_id)
        self._due[f"record of {trial.trial_id}"] = partial(self._store_record, trial, run_id)

    def _store_sizes(self, trial: TrialRecord) -> None:
        """Store settings and sizes, with the time of the proposal, so that a repetition is no double."""
        run_id, at = self.runs[trial.trial_id], self._proposed_at(trial)
        self._log(run_id, trial.trial_id, params=names.run_params(trial))
        self._metrics(run_id, trial.trial_id, names.size_metrics(trial), at, step=0)

    def _store_initial(self, trial: TrialRecord) -> None:
        """Store what was measured before training; with the time of the proposal, so that a repetition is no double."""
        run_id, at = self.runs[trial.trial_id], self._proposed_at(trial)
        self._metrics(run_id, trial.trial_id, names.initial_metrics(trial), at, step=0)

    def _proposed_at(self, trial: TrialRecord) -> int:
        return milliseconds(trial.proposed_at or self.study.header.began)

    def _add_dataset(self, run_id: str) -> None:
        dataset = _dataset_input(self.study)
        if dataset is not None:
            self.client.log_inputs(run_id, [dataset])

    def _store_record(self, trial: TrialRecord, run_id: str) -> None:
        self.client.log_dict(run_id, trial_fields(trial), names.TRIAL_FILE)
        if run_id not in self._complete:
            self.client.set_tag(run_id, names.COMPLETE_TAG, "true")
            self._complete.add(run_id)

    def _run_status(self, trial: TrialRecord) -> str:
        if trial.broken:
            return FAILED
        return KILLED if self.study.closed and trial.status not in TERMINAL else RUN_STATUS[trial.status]

    def _set_status(self, run_id: str, trial: TrialRecord, status: str) -> None:
        if status == "RUNNING":
            self.client.update_run(run_id, status)
        else:
            closed = self.study.closed or {}
            self.client.set_terminated(run_id, status, milliseconds(trial.finished_at or closed.get("time", 0.0)))

    def _store_infeasible(self) -> None:
        infeasible = [trial for trial in self.study.trials.values() if trial.status is Status.INFEASIBLE]
        rows = json.dumps([trial_fields(trial) for trial in infeasible], indent=1)
        self.client.log_text(self.parent, rows, names.INFEASIBLE_FILE)

    def _delete_outdated(self) -> None:
        """Delete files of an earlier summary or report that the present one lacks: they may show a broken trial."""
        stored = {artifact.path for artifact in self.client.list_artifacts(self.parent)}
        paths = stored & {FRONT_PICTURE} if (self.study_dir / SUMMARY_TABLE).exists() else set()
        if REPORT_FOLDER in stored and (self.study_dir / REPORT_FOLDER).is_dir():
            paths |= {artifact.path for artifact in self.client.list_artifacts(self.parent, REPORT_FOLDER)}
        outdated = [path for path in paths if not (self.study_dir / path).exists()]
        if outdated:
            delete_artifacts(self.client.get_run(self.parent).info.artifact_uri, self.uri, outdated)

    def _artifacts(self) -> list[tuple[Path, str | None]]:
        """Pictures and tables of the study, and all of its report, each with its folder among the artifacts."""
        artifacts: list[tuple[Path, str | None]] = [(self.study_dir / name, None) for name in ARTIFACTS]
        report = sorted(path for path in (self.study_dir / REPORT_FOLDER).rglob("*") if path.suffix != ".tmp")
        artifacts += [(path, path.parent.relative_to(self.study_dir).as_posix()) for path in report]
        return [(path, folder) for path, folder in artifacts if path.is_file()]

    # Calls

    def _metrics(self, run_id: str, subject: str, values: Mapping[str, float], at: int, step: int) -> None:
        self._log(run_id, subject, [(name, value, at, step) for name, value in values.items()])

    def _log(
        self,
        run_id: str,
        subject: str,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Store all of it in as few calls as MLflow's limits allow; tags go with the first metrics."""
        from mlflow.entities import Metric, Param, RunTag

        for part in _parts([Param(_name(key), value) for key, value in (params or {}).items()], SMALL_BATCH):
            self._batch(run_id, subject, part)
        labels: list[Any] = [RunTag(key, value) for key, value in (tags or {}).items()]
        parts = list(_parts([Metric(*point) for point in points], BATCH)) or [[]]
        for number, part in enumerate(parts):
            self._batch(run_id, subject, [*part, *([] if number else labels)])

    def _batch(self, run_id: str, subject: str, entities: Sequence[Metric | Param | RunTag]) -> None:
        """Store entities in one call; a refused batch is halved until what is at fault stands alone in `refused`."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        if not entities:
            return
        try:
            self.client.log_batch(
                run_id, [entity for entity in entities if isinstance(entity, Metric)],
                [entity for entity in entities if isinstance(entity, Param)],
                [entity for entity in entities if isinstance(entity, RunTag)],
            )  # fmt: skip
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if len(entities) == 1:
                self.refused[f"{entities[0].key[:80]} of {subject}"] = first_line(error, MESSAGE_LENGTH)
                return
            middle = len(entities) // 2
            self._batch(run_id, subject, entities[:middle])
            self._batch(run_id, subject, entities[middle:])

    def _store_artifacts(self) -> None:
        """Store the artifacts that are due; after a failure they stay due, and metrics are stored all the same."""
        failures: tuple[type[Exception], ...] = (*outages(), ImportError)  # a bucket needs a library of its own
        for name in list(self._due):
            try:
                self._due[name]()
            except failures as error:
                self.artifact_error = first_line(error, MESSAGE_LENGTH)
                return
            del self._due[name]


def _dataset_input(study: StudyRecord) -> DatasetInput | None:
    """The images as MLflow's data set, named by their fingerprint; None for a study that names no data."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = study.header.data
    if not data.name or not data.fingerprint:
        return None
    kind, _, folder = data.name.partition(":")
    section = study.header.space.get("data")
    source = {"uri": folder or kind, "settings": section if isinstance(section, dict) else {"name": data.name}}
    label = f"{kind} {folder.rstrip('/').rpartition('/')[2]}" if folder else kind
    profile = data.model_dump(include=set(SPLIT_SIZES), exclude_unset=True)
    dataset = Dataset(
        name=label, digest=data.fingerprint[:36],
        source_type="local" if folder else kind, source=json.dumps(source, sort_keys=True),
        profile=json.dumps(profile, sort_keys=True),
    )  # fmt: skip
    return DatasetInput(dataset, [InputTag(DATASET_CONTEXT_TAG, "training")])


def _points(entry: Entry) -> list[tuple[str, float, int, int]]:
    at = milliseconds(entry.time)
    return [
        (_name(names.metric_name(name)), float(value), at, entry.epoch)
        for name, value in entry.metrics.items()
        if isinstance(value, int | float)
    ]


def _name(text: str) -> str:
    """A name of a space file; characters that MLflow does not allow in names are replaced."""
    return re.sub(r"[^\w\-. /:]", "_", text)


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
