"""The MLflow side of tracking: one parent run a study, one child run a trial, each found again by its tags.

Everything here may be repeated: runs are looked up before they are made, parameters and metrics of equal key and value
are stored once by MLflow itself, tags and artifacts are overwritten with the same content. MLflow is imported only
inside functions, after `quiet_mlflow`, since the driver imports this package too and must not pay for it.

Times are milliseconds since the epoch, as MLflow wants them; the step of a metric is its epoch (from 1).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sweeps.records import (
    ARTIFACTS_FOLDER,
    COUNTS,
    FRONT_PICTURE,
    RESULTS_FILE,
    TERMINAL,
    VAL_ERROR,
    Event,
    Status,
    StudyRecord,
    TrialRecord,
    to_row,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

CALL_SECONDS = 10  # a call to a server that takes longer has failed and is repeated by the tracker itself
BATCH = 500  # metrics in one call; MLflow takes 1,000 in at most 1 MB
PARENT_TAG = "mlflow.parentRunId"
STUDY_TAG, KEY_TAG, TRIAL_TAG, COMPLETE_TAG = "study", "study_key", "trial_id", "artifacts_complete"
PARAMS = (
    "method", "dims", "rank_scale", "network", "data", "data_fingerprint", "weight_decay", "scaled_decay", "seed",
    "stratum", "role", *COUNTS,
)  # fmt: skip
RUN_STATUS = {
    Status.PROPOSED: "RUNNING",
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "FINISHED",
    Status.STOPPED: "FINISHED",
    Status.DIVERGED: "FAILED",
    Status.OUT_OF_MEMORY: "FAILED",
    Status.FAILED: "FAILED",
}
KILLED = "KILLED"
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})


def quiet_mlflow() -> None:
    """Prepare this process for MLflow: short time-outs, no retries inside a call, no telemetry, nothing printed.

    Call it before MLflow is imported. A call that timed out may yet be carried out by the server, so it is repeated
    only after looking at what is there, which MLflow's own retries would not do.
    """
    os.environ.update(
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(CALL_SECONDS),
        MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT=str(CALL_SECONDS),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_CONFIGURE_LOGGING="false",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )


def outages() -> tuple[type[Exception], ...]:
    """What MLflow raises when its store or server cannot take a record now."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def one_line(error: BaseException) -> str:
    """The first line of an error's text, cut to 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def milliseconds(seconds: float) -> int:
    """Seconds since the epoch as MLflow's milliseconds; the same input gives the same key whenever it is replayed."""
    return round(seconds * 1000)


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

    def __init__(self, uri: str, study_dir: Path, study: StudyRecord, key: str):
        self.uri, self.study_dir, self.study, self.key = uri, study_dir, study, key
        self.client = open_client(uri, study_dir)
        self.refused: list[str] = []  # records that this store will never take, in words
        self.artifact_error = ""  # why artifacts are missing, one line
        self._due: dict[str, Callable[[], None]] = {}  # artifacts that are not stored yet
        self._told: dict[str, tuple[str, dict[str, str]]] = {}  # run id -> status and tags as last stored
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
        kinds = {entry.event for entry in entries}
        if Event.STUDY in kinds:
            self._describe_parent()
        if Event.CLOSED in kinds and self.study.closed:
            points.update({trial_id: [] for trial_id in self.study.trials if trial_id not in points})
        for trial_id, found in points.items():
            self._attempt(f"trial {trial_id}", partial(self._trial, self.study.trials[trial_id], found))
        self._store_artifacts()

    def close(self) -> None:
        """Give the parent its summary, tables and end, and mark as killed what did not finish."""
        closed = self.study.closed
        if closed is None:
            return
        at = milliseconds(closed["time"])
        self._attempt("summary", partial(self._metrics, self.parent, _summary(self.study), at, step=0))
        self._due["infeasible.json"] = self._infeasible
        self._due["study.json"] = partial(self.client.log_dict, self.parent, self.study.header, "study.json")
        for name in (RESULTS_FILE, FRONT_PICTURE):
            if (self.study_dir / name).exists():
                self._due[name] = partial(self.client.log_artifact, self.parent, str(self.study_dir / name))
        status = "FINISHED" if closed.get("reason") == "finished" else KILLED
        self.client.set_terminated(self.parent, status, at)
        self._store_artifacts()

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

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study.name)
        if found is None:
            local = urlsplit(self.uri).scheme not in ("http", "https")
            place = (self.study_dir / ARTIFACTS_FOLDER).resolve().as_uri() if local else None
            return str(self.client.create_experiment(self.study.name, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            raise OSError(f"the MLflow experiment {self.study.name!r} was deleted; restore it or name another store")
        return str(found.experiment_id)

    def _find_parent(self) -> str:
        found = self._search(f"tags.{KEY_TAG} = '{self.key}'")
        if found:
            return self._keep_one(found)
        name = self.study.name
        tags = {STUDY_TAG: name, KEY_TAG: self.key}
        start = milliseconds(self.study.header["time"])
        return str(self.client.create_run(self.experiment, start, tags, run_name=name).info.run_id)

    def _load_children(self) -> None:
        by_trial: dict[str, list[Run]] = defaultdict(list)
        for run in self._search(f"tags.`{PARENT_TAG}` = '{self.parent}'"):
            by_trial[run.data.tags.get(TRIAL_TAG, "")].append(run)
        for trial_id, runs in by_trial.items():
            if trial_id in self.study.trials:
                self.runs[trial_id] = self._keep_one(runs)
                kept = next(run for run in runs if run.info.run_id == self.runs[trial_id])
                if COMPLETE_TAG not in kept.data.tags:
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

    def _describe_parent(self) -> None:
        header = self.study.header
        named = {"data": header.get("data", {}).get("name"), "network": header.get("network", {}).get("name")}
        plain = {key: header.get(key) for key in ("question", "commit", "command", "seed", "hardware")}
        tags = {**named, **plain, "mlflow.note.content": header.get("question")}
        self._attempt("study", partial(self._log, self.parent, tags=tags))
        self._due["study.json"] = partial(self.client.log_dict, self.parent, dict(header), "study.json")
        self.client.update_run(self.parent, "RUNNING")

    def _trial(self, trial: TrialRecord, entries: Sequence[Entry]) -> None:
        begun = bool(trial.attempts or trial.epochs or trial.status in TERMINAL)
        if trial.status is Status.INFEASIBLE or not (begun or self.study.closed):
            return
        if trial.trial_id not in self.runs:
            self._create(trial)
        run_id = self.runs[trial.trial_id]
        points = [point for entry in entries for point in _points(entry)]
        state = (self._run_status(trial), _state_tags(trial))
        if state == self._told.get(run_id):
            self._log(run_id, points)
            return
        self._log(run_id, points, tags=state[1])
        self._set_status(run_id, trial, state[0])
        self._told[run_id] = state

    def _create(self, trial: TrialRecord) -> None:
        tags = {PARENT_TAG: self.parent, TRIAL_TAG: trial.trial_id, STUDY_TAG: self.study.name}
        started = trial.attempts[0]["time"] if trial.attempts else trial.proposed_at
        start = milliseconds(started or self.study.header["time"])
        run = self.client.create_run(self.experiment, start, tags, run_name=_run_name(trial))
        self.runs[trial.trial_id] = str(run.info.run_id)
        self._describe(trial, self.runs[trial.trial_id])

    def _describe(self, trial: TrialRecord, run_id: str) -> None:
        row = to_row(self.study.name, trial)
        params = {**trial.parameters, **{name: row.get(name) for name in PARAMS}}
        at = milliseconds(trial.proposed_at or self.study.header["time"])
        counts: dict[str, float] = {
            name: trial.counts[name] for name in ("params", "mult_adds") if name in trial.counts
        }
        tags = {"role": trial.role, "stratum": trial.stratum}
        self._attempt(f"parameters of {trial.trial_id}", partial(self._log, run_id, params=params, tags=tags))
        self._metrics(run_id, counts, at, step=0)
        self._due[f"specification of {trial.trial_id}"] = partial(self._store_specification, trial, run_id)

    def _store_specification(self, trial: TrialRecord, run_id: str) -> None:
        self.client.log_dict(run_id, trial.specification, "specification.json")
        self.client.set_tag(run_id, COMPLETE_TAG, "true")

    def _run_status(self, trial: TrialRecord) -> str:
        return KILLED if self.study.closed and trial.status not in TERMINAL else RUN_STATUS[trial.status]

    def _set_status(self, run_id: str, trial: TrialRecord, status: str) -> None:
        if status == "RUNNING":
            self.client.update_run(run_id, status)
        else:
            closed = self.study.closed or {}
            self.client.set_terminated(run_id, status, milliseconds(trial.finished_at or closed.get("time", 0.0)))

    def _infeasible(self) -> None:
        found = [trial for trial in self.study.trials.values() if trial.status is Status.INFEASIBLE]
        rows = [{"trial_id": t.trial_id, "stratum": t.stratum, "reason": t.reason, **t.parameters} for t in found]
        self.client.log_dict(self.parent, {"infeasible": rows}, "infeasible.json")

    def _metrics(self, run_id: str, values: Mapping[str, float], at: int, step: int) -> None:
        self._log(run_id, [(name, value, at, step) for name, value in values.items()])

    def _log(
        self,
        run_id: str,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        listed = [Param(_name(key), str(value)) for key, value in (params or {}).items() if value not in (None, "")]
        labels = [RunTag(key, str(value)) for key, value in (tags or {}).items() if value is not None]
        for part in _parts(listed, 100):
            self.client.log_batch(run_id, params=part)
        parts = list(_parts([Metric(*point) for point in points], BATCH))
        for number, part in enumerate(parts or [[]] * bool(labels)):
            self.client.log_batch(run_id, metrics=part, tags=[] if number else labels)

    def _attempt(self, what: str, store: Callable[[], None]) -> None:
        """Run `store`; a record that MLflow will never take must not hold up all that come after it."""
        from mlflow.exceptions import MlflowException

        try:
            store()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self.refused.append(f"{what}: {one_line(error)}")

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


def open_client(uri: str, study_dir: Path) -> MlflowClient:
    """A client of a store; a SQLite file that is missing is made, its artifacts beside it in `study_dir`."""
    from mlflow.tracking import MlflowClient

    path = sqlite_path(uri)
    if path is not None and not path.exists():
        _create_database(path, study_dir)
    return MlflowClient(tracking_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///` URI; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :].partition("?")[0]) if uri.startswith(prefix) else None


def _create_database(path: Path, study_dir: Path) -> None:
    """Make the tables beside the database and move them into place: MLflow cannot mend a half-made database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    fresh = path.with_name(path.name + f".{os.getpid()}.new")
    for leftover in path.parent.glob(path.name + ".*.new*"):
        leftover.unlink()
    artifacts = (study_dir / ARTIFACTS_FOLDER).resolve().as_uri()
    store = SqlAlchemyStore(f"sqlite:///{fresh}", artifacts)
    store.engine.dispose()
    os.replace(fresh, path)


def _points(entry: Entry) -> list[tuple[str, float, int, int]]:
    at = milliseconds(entry.time)
    return [
        (_name(name), float(value), at, entry.epoch)
        for name, value in entry.metrics.items()
        if isinstance(value, int | float)
    ]


def _state_tags(trial: TrialRecord) -> dict[str, str]:
    tags = {"status": str(trial.status), "reason": trial.reason, "attempts": str(len(trial.attempts))}
    if trial.aliases:
        tags["aliases"] = json.dumps(trial.aliases, sort_keys=True)
    return tags


def _name(text: str) -> str:
    """A name of a space file with what MLflow does not allow in names replaced."""
    return re.sub(r"[^\w\-. /:]", "_", text)


def _run_name(trial: TrialRecord) -> str:
    method = trial.specification.get("method", {})
    parts = [trial.method or str(trial.role), *(str(method[key]) for key in ("dims", "rank_scale") if key in method)]
    return " ".join([*parts, trial.trial_id[:8]])


def _summary(study: StudyRecord) -> dict[str, float]:
    """Counts of trials by status, and the lowest validation error (percent) of those that completed."""
    statuses = [trial.status for trial in study.trials.values()]
    summary: dict[str, float] = {f"trials_{status}": statuses.count(status) for status in Status}
    done = [t for t in study.trials.values() if t.status is Status.COMPLETED and t.val_error is not None]
    if done:
        best = min(done, key=lambda trial: (trial.val_error, trial.counts.get("params", 0)))
        summary[f"best_{VAL_ERROR}"] = float(best.val_error or 0.0)
        if "params" in best.counts:
            summary["best_params"] = best.counts["params"]
    return summary


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
