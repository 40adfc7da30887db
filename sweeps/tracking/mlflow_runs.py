"""The MLflow side of tracking: one parent run a study, one child run a trial, each found again by its tags.

Everything here may be repeated: runs are looked up before they are made, parameters and metrics of equal key and value
are stored once by MLflow itself, tags, data sets and artifacts are overwritten with the same content. What things are
called is in `tracking_names`. The step of a metric is its epoch (from 1).
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

from sweeps.records import mlflow_names as names
from sweeps.records.events import TERMINAL, Event, Status
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import (
    ARTIFACTS_FOLDER,
    EPOCHS_FILE,
    FRONT_PICTURE,
    REPORT_FOLDER,
    RESULTS_FILE,
    SUMMARY_TABLE,
)
from sweeps.records.tables import study_fields, trial_fields
from sweeps.tracking.mlflow_dataset import dataset_input
from sweeps.tracking.mlflow_registry import register_front
from sweeps.tracking.mlflow_store import is_refusal, make_client, milliseconds, one_line, outages

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

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


@dataclass(frozen=True)
class Entry:
    """One journal event on its way to MLflow; `offset` is where the journal goes on after it."""

    offset: int
    event: Event
    time: float
    trial: str | None = None
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class MlflowStudy:
    """The runs of one study in one store. Every method may raise one of `outages()` and may then be called again."""

    def __init__(
        self,
        uri: str,
        study_dir: Path,
        study: StudyRecord,
        key: str,
        refused: Mapping[str, str] | None = None,
        again: bool = False,
    ):
        self.uri, self.study_dir, self.study, self.key = uri, study_dir, study, key
        self.client = make_client(uri, study_dir)
        self._again = again  # describe known runs once more: what was refused before is asked again
        self.refused = dict(refused or {})  # records that this store will never take -> why
        self.artifact_error = ""  # why artifacts are missing, one line
        self._due: dict[str, Callable[[], None]] = {}  # artifacts that are not stored yet
        self._told: dict[str, tuple[Any, ...]] = {}  # run id -> what of its state was last stored
        self._complete: set[str] = set()  # run ids whose record is stored
        self._tables = ""  # what the parent's tag was last set to
        self.experiment = self._experiment()
        self.parent = self._find_parent()
        self.runs: dict[str, str] = {}  # trial id -> run id
        self._load_children()

    def carry(self, entries: Sequence[Entry]) -> None:
        """Store what `entries` tell, in their order by trial; records refused for good are noted in `refused`."""
        points: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.trial is not None:
                points[entry.trial].append(entry)
        if entries:
            self._tables_are(names.BEHIND)
        of_study = {entry.event for entry in entries if entry.trial is None}
        if Event.STUDY in of_study:
            self._take_up_parent()
        if Event.ANNOTATED in of_study:
            self._describe_parent()
        if any(entry.event is Event.INFEASIBLE for entry in entries):
            self._due[names.INFEASIBLE_FILE] = self._infeasible
        if Event.ANNOTATED in of_study or (Event.CLOSED in of_study and self.study.closed):
            points.update({trial_id: [] for trial_id in self.study.trials if trial_id not in points})
        for trial_id, found in points.items():
            self._trial(self.study.trials[trial_id], found)
        self._store_artifacts()

    def close(self, at: float) -> None:
        """Give the parent its summary, pictures, tables and end, register the best models, and mark as killed what
        did not finish. `at` is the time of the newest event in seconds: a later summary replaces an earlier one."""
        closed = self.study.closed
        if closed is None:
            return
        self._metrics(self.parent, "the summary", names.study_metrics(self.study), milliseconds(at), step=0)
        self._due |= {names.INFEASIBLE_FILE: self._infeasible, names.STUDY_FILE: self._study}
        for path, place in self._artifacts():
            self._due[str(path)] = partial(self.client.log_artifact, self.parent, str(path), place)
        self._due["what an earlier report had"] = self._drop_old
        self._due["the best models"] = partial(
            register_front, self.client, self.experiment, self.study, self.study_dir, self.runs
        )
        status = "FINISHED" if closed.get("reason") == "finished" else KILLED
        self.client.set_terminated(self.parent, status, milliseconds(closed["time"]))
        self._store_artifacts()
        if not self._due:
            self._tables_are(names.CURRENT)

    def abandon(self, at: float) -> None:
        """Mark what still runs as killed: the driver died at `at` (seconds) without closing the study."""
        for trial_id, run_id in self.runs.items():
            if self.study.trials[trial_id].status not in TERMINAL:
                self.client.set_terminated(run_id, KILLED, milliseconds(at))
        self.client.set_terminated(self.parent, KILLED, milliseconds(at))

    @property
    def missing_artifacts(self) -> list[str]:
        """Names of the artifacts that the store has not taken."""
        return list(self._due)

    # Finding what is there

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study.name)
        if found is None:
            local = urlsplit(self.uri).scheme not in ("http", "https")
            place = (self.study_dir / ARTIFACTS_FOLDER).resolve().as_uri() if local else None
            tags = {**names.KIND_TAGS, names.DESCRIPTION_TAG: str(self.study.header.get("question", ""))}
            return str(self.client.create_experiment(self.study.name, artifact_location=place, tags=tags))
        if found.lifecycle_stage == "deleted":
            raise OSError(f"the MLflow experiment {self.study.name!r} was deleted; restore it or name another store")
        return str(found.experiment_id)

    def _find_parent(self) -> str:
        found = self._search(f"tags.{names.KEY_TAG} = '{self.key}'")
        if found:
            return self._keep_one(found)
        name = self.study.name
        tags = {names.STUDY_TAG: name, names.KEY_TAG: self.key}
        start = milliseconds(self.study.header["time"])
        return str(self.client.create_run(self.experiment, start, tags, run_name=name).info.run_id)

    def _load_children(self) -> None:
        by_trial: dict[str, list[Run]] = defaultdict(list)
        for run in self._search(f"tags.`{names.PARENT_TAG}` = '{self.parent}'"):
            by_trial[run.data.tags.get(names.TRIAL_TAG, "")].append(run)
        for trial_id, runs in by_trial.items():
            if trial_id in self.study.trials:
                self.runs[trial_id] = self._keep_one(runs)
                kept = next(run for run in runs if run.info.run_id == self.runs[trial_id])
                if self._again or names.COMPLETE_TAG not in kept.data.tags:
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

    def _keep_one(self, runs: list[Run]) -> str:
        """A call that timed out may have made a run that nobody knew of: keep the one with content, drop the others."""
        runs = sorted(
            runs,
            key=lambda run: (-len(run.data.metrics) - len(run.data.params) - len(run.data.tags), run.info.run_id),
        )
        for extra in runs[1:]:
            self.client.delete_run(extra.info.run_id)
        return str(runs[0].info.run_id)

    # Runs

    def _take_up_parent(self) -> None:
        self._describe_parent()
        self._add_dataset(self.parent)
        self.client.update_run(self.parent, "RUNNING")

    def _describe_parent(self) -> None:
        self._log(self.parent, "the study", tags=names.study_tags(self.study))
        self._due[names.STUDY_FILE] = self._study

    def _study(self) -> None:
        self.client.log_dict(self.parent, study_fields(self.study), names.STUDY_FILE)

    def _tables_are(self, state: str) -> None:
        """Say whether whoever reads the store may believe the parent's tables."""
        if state != self._tables:
            self.client.set_tag(self.parent, names.TABLES_TAG, state)
            self._tables = state

    def _trial(self, trial: TrialRecord, entries: Sequence[Entry]) -> None:
        begun = bool(trial.attempts or trial.epochs or trial.status in TERMINAL)
        if trial.status is Status.INFEASIBLE or not (begun or self.study.closed):
            return
        if trial.trial_id not in self.runs:
            self._create(trial)
        run_id = self.runs[trial.trial_id]
        points = [point for entry in entries for point in _points(entry)]
        status, tags = self._run_status(trial), names.trial_tags(self.study, trial)
        state = (status, tags, tuple(trial.notices), trial.test_error)
        if state == self._told.get(run_id):
            self._log(run_id, trial.trial_id, points)
            return
        self._log(run_id, trial.trial_id, points, tags=tags)
        self._set_status(run_id, trial, status)
        self._due[f"record of {trial.trial_id}"] = partial(self._store_record, trial, run_id)
        self._told[run_id] = state

    def _create(self, trial: TrialRecord) -> None:
        tags = names.identity_tags(self.study, trial, self.parent)
        started = trial.attempts[0]["time"] if trial.attempts else trial.proposed_at
        start = milliseconds(started or self.study.header["time"])
        run = self.client.create_run(self.experiment, start, tags, run_name=names.run_name(trial))
        self.runs[trial.trial_id] = str(run.info.run_id)
        self._describe(trial, self.runs[trial.trial_id])

    def _describe(self, trial: TrialRecord, run_id: str) -> None:
        at = milliseconds(trial.proposed_at or self.study.header["time"])
        self._log(run_id, trial.trial_id, params=names.run_params(trial))
        self._metrics(run_id, trial.trial_id, names.size_metrics(trial), at, step=0)
        self._add_dataset(run_id)
        self._due[f"record of {trial.trial_id}"] = partial(self._store_record, trial, run_id)

    def _add_dataset(self, run_id: str) -> None:
        found = dataset_input(self.study)
        if found is not None:
            self.client.log_inputs(run_id, [found])

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

    def _infeasible(self) -> None:
        found = [trial for trial in self.study.trials.values() if trial.status is Status.INFEASIBLE]
        rows = json.dumps([trial_fields(trial) for trial in found], indent=1)
        self.client.log_text(self.parent, rows, names.INFEASIBLE_FILE)

    def _drop_old(self) -> None:
        """Take out what an earlier summary or report had and the present one has not: it may show a broken trial."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        stored = {found.path for found in self.client.list_artifacts(self.parent)}
        made = stored & {FRONT_PICTURE} if (self.study_dir / SUMMARY_TABLE).exists() else set()
        if REPORT_FOLDER in stored and (self.study_dir / REPORT_FOLDER).is_dir():
            made |= {found.path for found in self.client.list_artifacts(self.parent, REPORT_FOLDER)}
        old = [path for path in made if not (self.study_dir / path).exists()]
        if old:
            place = self.client.get_run(self.parent).info.artifact_uri
            repository = get_artifact_repository(place, tracking_uri=self.uri)
            for path in old:
                repository.delete_artifacts(path)

    def _artifacts(self) -> list[tuple[Path, str | None]]:
        """Pictures and tables of the study, and all of its report, each with its folder among the artifacts."""
        found: list[tuple[Path, str | None]] = [(self.study_dir / name, None) for name in ARTIFACTS]
        report = sorted(path for path in (self.study_dir / REPORT_FOLDER).rglob("*") if path.suffix != ".tmp")
        found += [(path, path.parent.relative_to(self.study_dir).as_posix()) for path in report]
        return [(path, place) for path, place in found if path.is_file()]

    # Calls

    def _metrics(self, run_id: str, about: str, values: Mapping[str, float], at: int, step: int) -> None:
        self._log(run_id, about, [(name, value, at, step) for name, value in values.items()])

    def _log(
        self,
        run_id: str,
        about: str,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Store all of it in as few calls as MLflow's limits allow; tags go with the first metrics."""
        from mlflow.entities import Metric, Param, RunTag

        for part in _parts([Param(_name(key), value) for key, value in (params or {}).items()], SMALL_BATCH):
            self._batch(run_id, about, part)
        labels: list[Any] = [RunTag(key, value) for key, value in (tags or {}).items()]
        parts = list(_parts([Metric(*point) for point in points], BATCH)) or [[]]
        for number, part in enumerate(parts):
            self._batch(run_id, about, [*part, *([] if number else labels)])

    def _batch(self, run_id: str, about: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """One call; what MLflow will never take is halved until it stands alone and is noted; the rest is stored."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        if not items:
            return
        try:
            self.client.log_batch(
                run_id, [item for item in items if isinstance(item, Metric)],
                [item for item in items if isinstance(item, Param)],
                [item for item in items if isinstance(item, RunTag)],
            )  # fmt: skip
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if len(items) == 1:
                self.refused[f"{items[0].key[:80]} of {about}"] = one_line(error)
                return
            middle = len(items) // 2
            self._batch(run_id, about, items[:middle])
            self._batch(run_id, about, items[middle:])

    def _store_artifacts(self) -> None:
        """Store the artifacts that are due; the first failure leaves the rest due, and never holds up metrics."""
        failures: tuple[type[Exception], ...] = (*outages(), ImportError)  # a bucket wants a library of its own
        for name in list(self._due):
            try:
                self._due[name]()
            except failures as error:
                self.artifact_error = one_line(error)
                return
            del self._due[name]


def _points(entry: Entry) -> list[tuple[str, float, int, int]]:
    at = milliseconds(entry.time)
    return [
        (_name(names.metric_name(name)), float(value), at, entry.epoch)
        for name, value in entry.metrics.items()
        if isinstance(value, int | float)
    ]


def _name(text: str) -> str:
    """A name of a space file with what MLflow does not allow in names replaced."""
    return re.sub(r"[^\w\-. /:]", "_", text)


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
