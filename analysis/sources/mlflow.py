"""Reads a study from an MLflow store, as its records were when they were brought there.

The parent run keeps the study's tables as artifacts; if its tag says that they are up to date, nothing else is read.
While a study runs, or after its driver was killed, the runs themselves are newer: then every trial is read from its own
run, settings and history from `trial.json`, its state from tags, its epochs from the metrics. Both ways give the same
records. The runs have the time of an epoch to the millisecond, and of trials that no worker has started yet only the
infeasible ones.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import sweeps.records.mlflow_names as names
from analysis.utils import silent
from lowrank.errors import InputError, unknown
from lowrank.utils import first_line, redact
from sweeps.records import (
    EPOCHS_FILE,
    GROUP_TAG,
    RESULTS_FILE,
    Status,
    StudyRecord,
    TrialRecord,
    read_tables,
    study_from_fields,
    trial_from_fields,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ANSWER_SECONDS = "10"
_STORED_ANEW = "`python -m sweeps.tracking STUDY_DIR --again` stores them anew from the journal"
_OLDER = f"the runs of {{!r}} were written by another version, or without its artifacts; {_STORED_ANEW}"
_DAMAGE = (KeyError, TypeError, AttributeError, ValueError)  # of content that is not what was written
_TABLES = ("experiments", "runs", "tags", "params", "metrics")  # of every MLflow database
_SQLITE = "sqlite:///"
T = TypeVar("T")
Notify = Callable[[str], None]  # called with how far the reading is


def load_from_mlflow(uri: str, name: str, notify: Notify = silent) -> StudyRecord:
    """Read a study from an MLflow store.

    Runs without their record are left out; their names are printed on standard error.

    Args:
        uri: of the store.
        name: of the study; NAME@KEY for one of several of that name.
        notify: is called with how far the reading is.

    Returns:
        The records.

    Raises:
        InputError: the store does not answer, has no such study or several (the message lists them), another
            version of this project wrote it, or its records are damaged.
    """
    notify("MLflow")
    try:
        return _read(uri, lambda client: _load(client, name, notify))
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"the records of {name!r} in the MLflow store {redact(uri)} are damaged ({first_line(error)}); "
            f"{_STORED_ANEW}"
        ) from error


def load_typed_notes(uri: str, study: StudyRecord, key: str) -> dict[str, str]:
    """Read what people have typed into the descriptions of a study's runs in MLflow.

    Args:
        uri: of the store.
        study: the records, whose own texts in the descriptions are left out.
        key: of the study in the store, as `sweeps.records.mlflow_names.study_key` gives.

    Returns:
        Texts by trial id, "" for the study itself; those where something was typed.

    Raises:
        InputError: the store does not answer.
    """
    if uri.startswith(_SQLITE):
        described = _described_in_file(uri, study.name)
    else:
        described = _read(uri, lambda client: _described_runs(client, study.name))
    return _typed_notes(described, study, key)


def find_group(uri: str, group: str) -> list[str]:
    """Find the studies of a group in an MLflow store.

    Args:
        uri: of the store.
        group: its name.

    Returns:
        The names of the studies as `load_from_mlflow` takes them, the one that began first before the others.

    Raises:
        InputError: the store does not answer.
    """

    def find(client: MlflowClient) -> list[str]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = list(_runs(client, experiments, f"tags.`{names.KEY_TAG}` != ''"))
        counts = Counter(run.info.experiment_id for run in runs)
        members = [run for run in runs if run.data.tags.get(GROUP_TAG) == group]
        return [
            _key_name(run) if counts[run.info.experiment_id] > 1 else str(run.data.tags[names.STUDY_TAG])
            for run in sorted(members, key=lambda run: run.info.start_time or 0)
        ]

    return _read(uri, find)


def _read(uri: str, read: Callable[[MlflowClient], T]) -> T:
    """What `read` gets from a store; raises InputError where the store does not answer."""
    os.environ.update(
        MLFLOW_HTTP_REQUEST_TIMEOUT=ANSWER_SECONDS, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", MLFLOW_DISABLE_TELEMETRY="true",
    )  # fmt: skip
    _check_file(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return read(MlflowClient(tracking_uri=uri))
    except InputError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"the MLflow store {redact(uri)} cannot be read: {detail}") from error


def _described_runs(client: MlflowClient, name: str) -> dict[str, dict[str, str]]:
    """The tags, by run id, of the runs of an experiment: those with a description, and the parents."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return {}
    rules = (f"tags.`{names.DESCRIPTION_TAG}` != ''", f"tags.{names.KEY_TAG} != ''")
    return {
        run.info.run_id: dict(run.data.tags)
        for rule in rules
        for run in _runs(client, [experiment.experiment_id], rule)
    }


def _described_in_file(uri: str, name: str) -> dict[str, dict[str, str]]:
    """The same from a database beside a study.

    It is read directly: MLflow takes seconds to import and to open a database, and there is one for each study.
    """
    query = """
        select t.run_uuid, t.key, t.value from tags t
        join runs r on r.run_uuid = t.run_uuid and r.lifecycle_stage = 'active'
        join experiments e on e.experiment_id = r.experiment_id and e.name = ?
        where t.run_uuid in (select run_uuid from tags where (key = ? and value != '') or key = ?)
    """
    described: dict[str, dict[str, str]] = {}
    for run_id, key, value in _query_file(uri, query, (name, names.DESCRIPTION_TAG, names.KEY_TAG)):
        described.setdefault(run_id, {})[key] = value
    return described


def _typed_notes(described: Mapping[str, Mapping[str, str]], study: StudyRecord, key: str) -> dict[str, str]:
    parent = next((run_id for run_id, tags in described.items() if tags.get(names.KEY_TAG) == key), None)
    typed = {}
    for run_id, tags in described.items():
        trial_id = tags.get(names.TRIAL_TAG, "")
        record = study if run_id == parent else study.trials.get(trial_id)
        if record is None or (record is not study and tags.get(names.PARENT_TAG) != parent):
            continue  # of another study of the same name
        text = names.typed_text(tags.get(names.DESCRIPTION_TAG, ""), names.recorded_paragraphs(record))
        if text:
            typed[trial_id] = text
    return typed


def _check_file(uri: str) -> None:
    """Refuse a database that does not exist, or is none: MLflow would make an empty one, or try for an hour."""
    if uri.startswith(_SQLITE):
        for table in _TABLES:
            _query_file(uri, f"select 1 from {table} limit 1")


def _query_file(uri: str, query: str, values: Sequence[str] = ()) -> list[tuple[Any, ...]]:
    """The rows of a query to an MLflow database; raises InputError where it does not exist, or is none."""
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    if not path.is_file():
        raise InputError(f"there is no MLflow database {path}")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.DatabaseError as error:
        raise InputError(f"the MLflow store {redact(uri)} cannot be read: {first_line(error)}") from error


def _key_name(parent: Run) -> str:
    """The name of a study with what tells it from others of that name: when it began, in milliseconds."""
    name, _, began = parent.data.tags[names.KEY_TAG].rpartition(" ")
    return f"{name}@{began}"


def _choose_parent(parents: Sequence[Run], name: str) -> Run:
    """The run of the study that a name means: the only one of that name, or the one whose key is given."""
    chosen = [run for run in parents if _key_name(run) == name] if "@" in name else list(parents)
    if len(chosen) == 1:
        return chosen[0]
    keys = sorted(map(_key_name, parents))
    began = [datetime.fromtimestamp(int(key.rpartition("@")[2]) / 1000, UTC) for key in keys]
    choices = ", ".join(f"{key} ({time:%Y-%m-%d %H:%M} UTC)" for key, time in zip(keys, began, strict=True))
    if "@" in name:
        raise InputError(f"the MLflow store has no study {name!r}; choose from: {choices}")
    raise InputError(f"the MLflow experiment {name!r} has {len(parents)} studies of that name; choose from: {choices}")


def _load(client: MlflowClient, study: str, notify: Notify) -> StudyRecord:
    name = study.partition("@")[0]
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise unknown("study", name, [entry.name for entry in client.search_experiments()] or ["none: it is empty"])
    runs = list(_runs(client, [experiment.experiment_id]))
    parents = [run for run in runs if names.KEY_TAG in run.data.tags]
    if not parents:
        raise InputError(f"the MLflow experiment {name!r} holds no study of this project")
    parent = _choose_parent(parents, study)
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(client, Path(folder))
        if parent.data.tags.get(names.TABLES_TAG) == names.CURRENT:
            for table in (RESULTS_FILE, EPOCHS_FILE):
                files.fetch(parent, table)
            try:
                return read_tables(Path(folder))
            except InputError as error:  # it names the copies, which nobody knows
                raise ValueError(f"{RESULTS_FILE} or {EPOCHS_FILE}: {first_line(error.__cause__ or error)}") from error
        return _from_runs(client, files, parent, runs, notify)


def _runs(client: MlflowClient, experiments: Sequence[str], rule: str = "") -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(list(experiments), rule, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


class _Files:
    """Fetches artifacts into a folder."""

    def __init__(self, client: MlflowClient, folder: Path):
        self._client, self._folder = client, folder

    def fetch(self, run: Run, name: str) -> Path:
        return Path(self._client.download_artifacts(run.info.run_id, name, str(self._folder)))

    def json(self, run: Run, name: str) -> Any:
        """The content of a JSON artifact; None where the run has none of that name."""
        if name not in {artifact.path for artifact in self._client.list_artifacts(run.info.run_id)}:
            return None
        try:
            return json.loads(self.fetch(run, name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name} of {run.info.run_name}: {first_line(error)}") from error


def _from_runs(client: MlflowClient, files: _Files, parent: Run, runs: Iterable[Run], notify: Notify) -> StudyRecord:
    study = files.json(parent, names.STUDY_FILE)
    if not isinstance(study, dict) or "header" not in study:
        raise InputError(_OLDER.format(parent.info.run_name))
    children = [run for run in runs if run.data.tags.get(names.PARENT_TAG) == parent.info.run_id]
    trials = [trial_from_fields(entry) for entry in files.json(parent, names.INFEASIBLE_FILE) or []]
    for number, run in enumerate(children, start=1):
        notify(f"run {number:,} of {len(children):,}")
        content = files.json(run, names.TRIAL_FILE)
        if content is not None:
            trials.append(_trial(client, run, content))
    if children and not trials:
        raise InputError(_OLDER.format(parent.info.run_name))
    ids = {trial.trial_id for trial in trials}
    missing = [run.info.run_name or "" for run in children if run.data.tags.get(names.TRIAL_TAG) not in ids]
    if missing:
        print(
            f"left out, since the store does not have their {names.TRIAL_FILE}: {', '.join(missing)}", file=sys.stderr
        )
    trials.sort(key=lambda trial: trial.proposed_at or 0.0)
    try:
        return study_from_fields(study, {trial.trial_id: trial for trial in trials})
    except (InputError, TypeError) as error:
        raise ValueError(f"{names.STUDY_FILE} of {parent.info.run_name}: {first_line(error)}") from error


def _trial(client: MlflowClient, run: Run, content: dict[str, object]) -> TrialRecord:
    """A trial from its run. Tags are written before artifacts: where the two differ, the tags are right."""
    tags = run.data.tags
    try:
        record = trial_from_fields(content)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{names.TRIAL_FILE} of {run.info.run_name}: {first_line(error)}") from error
    record.status, record.reason = Status(tags.get("status", record.status)), tags.get("reason", record.reason)
    broken = tags.get(names.BROKEN_TAG, names.SOUND)
    record.broken = "" if broken == names.SOUND else broken
    record.test_error = run.data.metrics.get("test_error", record.test_error)
    for name in run.data.metrics:
        metric = names.metric_of(name)
        if metric is None:
            continue
        for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp):
            epoch = record.epochs.setdefault(point.step, {})
            epoch |= {metric: point.value, "time": max(point.timestamp / 1000, epoch.get("time", 0.0))}
    return record
