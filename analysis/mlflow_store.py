"""Reads a study back from an MLflow store, as its records were when they were carried there.

The parent run keeps the study's header and its tables as artifacts; with those nothing else is read. While a study
runs the tables are not there yet: then every child run is read by its tags, its specification and its metrics.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.load import load_tables
from lowrank.errors import InputError, unknown
from sweeps.records import COUNTS, EPOCHS_FILE, RESULTS_FILE, Role, Status, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# Names that sweeps writes there; other tags, and whatever lies beside these files, are left alone
PARENT_TAG, TRIAL_TAG = "mlflow.parentRunId", "trial_id"
HEADER_FILE, SPECIFICATION_FILE = "study.json", "specification.json"
SOUND = "no"  # the tag `broken` of a trial that is not
ANSWER_SECONDS = "10"


def load_from_mlflow(uri: str, name: str) -> StudyRecord:
    """The study `name` of the store at `uri`.

    Raises:
        InputError: the store does not answer, or holds no such study (the text lists those that it holds).
    """
    os.environ.update(
        MLFLOW_HTTP_REQUEST_TIMEOUT=ANSWER_SECONDS, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", MLFLOW_DISABLE_TELEMETRY="true",
    )  # fmt: skip
    _check_file(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _load(MlflowClient(tracking_uri=uri), name)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"the MLflow store {without_password(uri)} cannot be read: {detail}") from error


def without_password(uri: str) -> str:
    """A tracking address as it may be shown."""
    before, at, after = uri.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else uri


def _check_file(uri: str) -> None:
    """MLflow would make an empty database where there is none."""
    prefix = "sqlite:///"
    path = Path(uri.removeprefix(prefix).partition("?")[0])
    if uri.startswith(prefix) and not path.is_file():
        raise InputError(f"there is no MLflow database {path}")


def _load(client: MlflowClient, name: str) -> StudyRecord:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise unknown("study", name, [found.name for found in client.search_experiments()] or ["none: it is empty"])
    runs = list(_runs(client, experiment.experiment_id))
    parents = [run for run in runs if PARENT_TAG not in run.data.tags and TRIAL_TAG not in run.data.tags]
    if not parents:
        raise InputError(f"the MLflow experiment {name!r} holds no study of this project")
    parent = max(parents, key=lambda run: run.info.start_time or 0)
    files = _files(client, parent.info.run_id)
    header = {"name": name}
    if HEADER_FILE in files:
        header |= json.loads(_text(client, parent.info.run_id, files[HEADER_FILE]))
    if RESULTS_FILE in files and parent.info.status != "RUNNING":
        study = _from_tables(client, parent.info.run_id, files)
    else:
        study = StudyRecord(trials=dict(_children(client, runs, parent.info.run_id)))
    if EPOCHS_FILE not in files or parent.info.status == "RUNNING":
        _add_curves(client, study, runs)
    return StudyRecord(header=header, trials=study.trials)


def _runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _files(client: MlflowClient, run: str, folder: str | None = None) -> dict[str, str]:
    """Paths of a run's artifacts by file name."""
    found: dict[str, str] = {}
    for each in client.list_artifacts(run, folder):
        found |= _files(client, run, each.path) if each.is_dir else {Path(each.path).name: each.path}
    return found


def _text(client: MlflowClient, run: str, path: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run, path, folder)).read_text()


def _from_tables(client: MlflowClient, run: str, files: Mapping[str, str]) -> StudyRecord:
    with tempfile.TemporaryDirectory() as folder:
        for name in (RESULTS_FILE, EPOCHS_FILE):
            if name in files:
                Path(client.download_artifacts(run, files[name], folder)).rename(Path(folder) / name)
        return load_tables(Path(folder))


def _children(client: MlflowClient, runs: list[Run], parent: str) -> Iterator[tuple[str, TrialRecord]]:
    for run in runs:
        tags = run.data.tags
        if tags.get(PARENT_TAG) == parent and TRIAL_TAG in tags:
            yield tags[TRIAL_TAG], _trial(client, run)


def _trial(client: MlflowClient, run: Run) -> TrialRecord:
    tags, params = run.data.tags, run.data.params
    files = _files(client, run.info.run_id)
    known = SPECIFICATION_FILE in files
    spec = json.loads(_text(client, run.info.run_id, files[SPECIFICATION_FILE])) if known else {}
    record = TrialRecord(
        trial_id=tags[TRIAL_TAG], role=Role(tags.get("role", Role.SEARCH)), stratum=tags.get("stratum", ""),
        status=Status(tags.get("status", Status.RUNNING)), reason=tags.get("reason", ""), specification=spec,
        parameters={key: _value(value) for key, value in params.items() if "." in key},
        counts={key: int(params[key]) for key in COUNTS if key in params},
        proposed_at=(run.info.start_time or 0) / 1000 or None, finished_at=(run.info.end_time or 0) / 1000 or None,
    )  # fmt: skip
    record.test_error = run.data.metrics.get("test_error")
    record.point_id = tags.get("point", "")
    record.broken = "" if tags.get("broken", SOUND) == SOUND else tags["broken"]
    return record


def _value(text: str) -> Any:
    """A parameter as it was before MLflow made text of it."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return None if text == "None" else text


def _add_curves(client: MlflowClient, study: StudyRecord, runs: list[Run]) -> None:
    """Every epoch's metrics of every trial, which takes a call for each metric of each run."""
    for run in runs:
        trial = study.trials.get(run.data.tags.get(TRIAL_TAG, ""))
        if trial is None:
            continue
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                if point.step > 0 and name != "test_error":
                    trial.epochs.setdefault(point.step, {"time": point.timestamp / 1000})[name] = point.value
