"""The folder of teachers: one subfolder each, written once and never again, and MLflow's model registry beside it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.distillation import RECORD_FILE, WEIGHTS_FILE, TeacherRecord, read_record, teacher_names
from lowrank.errors import InputError, show_value
from lowrank.utils import LockedError, file_hash, first_line, hold_lock, sync, write_text
from sweeps.records import MLFLOW_FILE
from sweeps.tracking import MESSAGE_LENGTH, make_client, milliseconds, outages, quiet_mlflow
from sweeps.utils import is_plain_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from lowrank.data import ImageData

UNFINISHED = ".training"  # checkpoints of teachers that are not finished
CURVE_FILE = "epochs.json"  # metrics of every epoch, in the teacher's folder
EXPERIMENT = "teachers"
SHA_TAG = "sha256"
UPLOAD_SECONDS = 600
METRICS_PER_CALL = 500  # MLflow takes at most 1000


def name_taken_error(root: Path, name: str) -> InputError:
    """Return the error for a name that has a teacher already.

    Args:
        root: folder of teachers.
        name: the name.

    Returns:
        An error that lists the names there are.
    """
    listed = ", ".join(teacher_names(root))
    return InputError(f"the teacher {name!r} exists in {root} and is never overwritten; choose another --name than: "
                      f"{listed}")  # fmt: skip


@contextmanager
def reserve_name(root: Path, name: str) -> Iterator[Path]:
    """Keep other processes from training a teacher of this name, while the block runs.

    Args:
        root: folder of teachers.
        name: of the teacher.

    Yields:
        The folder of checkpoints.

    Raises:
        InputError: the name is taken, or another process trains it.
    """
    folder = root / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / f"{name}.lock", timeout=0))
        except LockedError as error:
            raise InputError(f"the teacher {name!r} is being trained by another process") from error
        if (root / name).exists():
            raise name_taken_error(root, name)
        yield folder


def store_teacher(
    root: Path, record: TeacherRecord, weights: Path, history: Sequence[Mapping[str, Any]], data: ImageData
) -> Path:  # fmt: skip
    """Put a teacher into the folder of teachers, whole or not at all.

    Args:
        root: folder of teachers.
        record: its `sha256` is that of `weights`.
        weights: a file of `lowrank.io.model_file`, which is moved.
        history: metrics of every epoch.
        data: the set that it was trained on.

    Returns:
        The teacher's own folder.

    Raises:
        InputError: the name is taken.
    """
    from lowrank.serving import write_images  # imports torch, which a list of teachers does not need

    target = root / record.name
    unfinished = root / UNFINISHED / f"{record.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weights.replace(unfinished / WEIGHTS_FILE)
    _write_json(unfinished / CURVE_FILE, list(history))
    _write_json(unfinished / RECORD_FILE, record.model_dump(mode="json"))
    write_images(unfinished, data)
    sync(unfinished / WEIGHTS_FILE)
    try:
        unfinished.rename(target)  # fails if a folder with content has the name
    except OSError as error:
        unfinished.joinpath(WEIGHTS_FILE).replace(weights)
        shutil.rmtree(unfinished)
        raise name_taken_error(root, record.name) from error
    sync(root)
    return target


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_teacher(root: Path, name: str) -> TeacherRecord:
    """Read the record of a teacher.

    Args:
        root: folder of teachers.
        name: of the teacher.

    Returns:
        The record.

    Raises:
        InputError: there is no such teacher; the message lists those there are.
    """
    record = read_record(root / name / RECORD_FILE) if is_plain_name(name) else None
    if record is None:
        raise InputError(
            f"no teacher {show_value(name)} in {root}; there are: {', '.join(teacher_names(root)) or 'none yet'}"
        )
    return record


def default_uri(root: Path) -> str:
    """Return the URI of the SQLite store beside the teachers.

    Args:
        root: folder of teachers.
    """
    return f"sqlite:///{(root / MLFLOW_FILE).resolve()}"


def register(root: Path, name: str, uri: str) -> str:
    """Put a teacher into the model registry of an MLflow store; a second time changes nothing.

    Args:
        root: folder of teachers.
        name: of the teacher.
        uri: of the store.

    Returns:
        What was done, in words.

    Raises:
        InputError: the weights are damaged, or the registry has other weights under this name.
        OSError: the store does not take it; one line says why.
    """
    record = read_teacher(root, name)
    if file_hash(root / name / WEIGHTS_FILE) != record.sha256:
        raise InputError(f"the teacher {name!r} is damaged: its weights do not have the sha256 of {RECORD_FILE}")
    quiet_mlflow()
    os.environ["MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT"] = str(UPLOAD_SECONDS)
    try:
        return _register(make_client(uri, root), root / name, record, uri)
    except outages() as error:
        raise OSError(first_line(error, MESSAGE_LENGTH)) from error


def _register(client: MlflowClient, folder: Path, record: TeacherRecord, uri: str) -> str:
    versions = client.search_model_versions(f"name = '{record.name}'")
    registered = [version.tags.get(SHA_TAG) for version in versions]
    if record.sha256 in registered:
        return f"{record.name} is in the model registry already"
    if registered:
        raise InputError(f"the model registry has other weights under the name {record.name!r}; none are overwritten")
    run = client.create_run(_experiment(client, folder.parent, uri), run_name=record.name).info
    _describe(client, run.run_id, folder, record)
    for name in (WEIGHTS_FILE, RECORD_FILE):
        client.log_artifact(run.run_id, str(folder / name))
    client.set_terminated(run.run_id)
    if not client.search_registered_models(f"name = '{record.name}'"):
        client.create_registered_model(record.name, description=f"{record.network['name']} on {record.data['name']}")
    version = client.create_model_version(record.name, run.artifact_uri, run.run_id, tags=_tags(record))
    return f"{record.name} is version {version.version} in the model registry"


def _experiment(client: MlflowClient, root: Path, uri: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = (root / "mlflow_artifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _tags(record: TeacherRecord) -> dict[str, str]:
    return {
        SHA_TAG: record.sha256, "network": str(record.network["name"]), "data": str(record.data["name"]),
        "data_fingerprint": record.fingerprint, "commit": record.commit, "seed": str(record.seed),
        "val_error": f"{record.val_error:.4g}", "test_error": f"{record.test_error:.4g}",
        "specification_id": record.specification_id,
    }  # fmt: skip


def _describe(client: MlflowClient, run_id: str, folder: Path, record: TeacherRecord) -> None:
    """Log settings as parameters, the curve as metrics (the step is the epoch, from 1), errors at the end."""
    from mlflow.entities import Metric, Param, RunTag

    now = milliseconds(time.time())
    params = [Param(f"train.{key}", str(value)) for key, value in record.train.items() if value is not None]
    history = json.loads((folder / CURVE_FILE).read_text())
    metrics = [
        Metric(key, float(value), now, epoch)
        for epoch, values in enumerate(history, start=1)
        for key, value in values.items()
    ]
    metrics += [Metric("test_error", record.test_error, now, len(history)), Metric("params", record.params, now, 0)]
    client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in _tags(record).items()])
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
