"""The Arrow tables of a study, one row a trial and one row an epoch, and the records read back from them.

`results.parquet` holds each trial's record without its epochs; the study's header, notes and end are its metadata.
Together with `epochs.parquet` it gives back the study that the journal gave: `read_tables` inverts `write_tables`.
"""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lowrank.errors import InputError
from lowrank.utils import atomic_path, first_line
from sweeps.records.events import Role, Status
from sweeps.records.header import StudyHeader
from sweeps.records.model import StudyRecord, TrialRecord, parse_record_specification
from sweeps.records.names import COUNTS, EPOCH_METRICS, EPOCHS_FILE, PART_METRIC_PREFIXES, RESULTS_FILE, STAGE_COLUMN
from sweeps.records.specification import TrialSpec

PlainFields = dict[str, Any]  # of a record, as JSON has them
STUDY_KEY = b"study"  # key of the metadata of results.parquet
# Column -> field of the record that it holds as JSON: lists and mappings, whose keys differ from trial to trial
JSON_COLUMNS = {
    "parameters": "parameters", "aliases": "aliases", "specification": "specification", "tags": "tags",
    "notes": "notes", "notices": "notices", "attempt_log": "attempts", "proposal": "proposal", "adopted": "adopted",
    "wrong_images": "wrong_images", "initial": "initial", "removed": "removed",
}  # fmt: skip
# Columns that tables of earlier versions lack
NEW_COLUMNS = ("wrong_images", "initial", "initial_error", "total_epochs", "postponed", "removed", "mixed_bytes")
GENERATION_KEY = b"generation"  # key of the metadata of both tables: those that were written together have the same
READ_SECONDS, POLL_SECONDS = 5.0, 0.05  # for a writer that has replaced one table to replace the other
LIST_FIELDS = ("aliases", "notes", "notices", "attempts")
RECIPE_COLUMNS = (
    "weight_decay", "scaled_decay", "decay", "decay_multiplier", "attention_weight", "kd_weight",
)  # fmt: skip
# The table of `--probe-memory`: one row a distinct configuration, on the device that its trials will use. MB are
# 1e6 bytes; `largest_batch` is 0 where none fits; `limited` says that a larger one was seen not to fit.
FIT_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()), ("stratum", pa.string()), ("network", pa.string()), ("method", pa.string()),
        ("params", pa.int64()), ("parameters", pa.string()), ("configuration", pa.string()), ("teacher", pa.string()),
        ("host", pa.string()), ("device", pa.string()), ("share", pa.float64()), ("precision", pa.string()),
        ("batch_size", pa.int64()), ("status", pa.string()), ("reason", pa.string()), ("peak_mb", pa.float64()),
        ("step_seconds", pa.float64()), ("images_per_second", pa.float64()), ("largest_batch", pa.int64()),
        ("limited", pa.bool_()), ("measured_at", pa.float64()),
    ]
)  # fmt: skip
FITS, OUT_OF_MEMORY, FAILED = "fits", str(Status.OUT_OF_MEMORY), str(Status.FAILED)  # values of `status`
FIT_FOLDER = "fit"  # in the folder of studies; one Parquet file a space
COPIED_COLUMNS = ("trial_id", "stratum", "reason", "proposed_at", "finished_at", "test_error")

STORED_NAMES = {"packing": "placement", "runs": "sittings"}  # fields of a study whose names on disk differ

RESULTS_SCHEMA = pa.schema(
    [
        ("study", pa.string()), ("trial_id", pa.string()), ("role", pa.string()), ("stratum", pa.string()),
        ("status", pa.string()), ("reason", pa.string()), ("network", pa.string()), ("data", pa.string()),
        ("data_fingerprint", pa.string()), ("method", pa.string()), ("dims", pa.int64()),
        ("rank_scale", pa.float64()), *((name, pa.int64()) for name in COUNTS),
        ("weight_decay", pa.float64()), ("scaled_decay", pa.bool_()), ("decay", pa.string()), ("seed", pa.int64()),
        ("teacher", pa.string()), ("attention_weight", pa.float64()), ("kd_weight", pa.float64()),
        ("epochs", pa.int64()), ("val_error", pa.float64()), ("val_loss", pa.float64()),
        ("train_error", pa.float64()), ("train_loss", pa.float64()), ("test_error", pa.float64()),
        ("images_per_second", pa.float64()), ("train_seconds", pa.float64()), ("start_seconds", pa.float64()),
        ("attempts", pa.int64()), ("host", pa.string()), ("device", pa.string()), ("sharing", pa.string()),
        ("proposed_at", pa.float64()), ("finished_at", pa.float64()),
        ("point_id", pa.string()), ("allocation", pa.string()), ("decay_multiplier", pa.float64()),
        ("start", pa.string()), ("broken", pa.string()), ("initial_error", pa.float64()), ("total_epochs", pa.int64()),
        ("postponed", pa.string()),
        *((name, pa.string()) for name in JSON_COLUMNS),
    ]
)  # fmt: skip

EPOCHS_SCHEMA = pa.schema(
    [("trial_id", pa.string()), ("epoch", pa.int64()), ("time", pa.float64())]
    + [(name, pa.float64()) for name in EPOCH_METRICS]
    + [(STAGE_COLUMN, pa.map_(pa.string(), pa.float64()))]
)


def trial_to_row(study: str, trial: TrialRecord) -> dict[str, object]:
    """Write a trial as a row of RESULTS_SCHEMA; host and device are the last attempt's.

    Args:
        study: name of the study.
        trial: the record.

    Returns:
        Values by column, None where unknown.
    """
    spec = trial.specification
    last = trial.epochs.get(trial.last_epoch, {})
    speeds = [epoch["images_per_second"] for epoch in trial.epochs.values() if "images_per_second" in epoch]
    row: dict[str, object] = {
        "study": study, **{name: getattr(trial, name) for name in COPIED_COLUMNS}, "role": str(trial.role),
        "status": str(trial.status), "method": trial.method, "epochs": trial.last_epoch,
        "images_per_second": sum(speeds) / len(speeds) if speeds else None,
        "train_seconds": trained_seconds(trial),
        "start_seconds": sum(attempt.get("start_seconds", 0.0) for attempt in trial.attempts),
        "attempts": len(trial.attempts), "host": trial.last_attempt("host"), "device": trial.last_attempt("device"),
        "sharing": trial.last_attempt("sharing"),
        "point_id": trial.point_id or None, "allocation": "even", "start": start_kind(spec),
        "broken": trial.broken or None, "postponed": trial.postponed or None,
        "initial_error": trial.initial_error, "total_epochs": trial.total_epochs,
    }  # fmt: skip
    if spec is not None:
        row |= {
            "network": spec.network.name, "data": spec.data.name, "data_fingerprint": spec.data.fingerprint,
            "dims": spec.method.dims, "rank_scale": spec.method.rank_scale, "seed": spec.seed,
            "allocation": spec.allocation.by if spec.allocation else "even",
            "teacher": spec.teacher.name if spec.teacher else None,
            **{name: getattr(spec.train, name) for name in RECIPE_COLUMNS},
        }  # fmt: skip
    plain = trial_fields(trial)
    row |= {column: json.dumps(plain[name], sort_keys=True) for column, name in JSON_COLUMNS.items()}
    row.update({name: trial.counts.get(name) for name in COUNTS})
    row.update({name: last.get(name) for name in ("val_error", "val_loss", "train_error", "train_loss")})
    if not trial.epochs:  # only evaluated
        row.update(val_error=trial.val_error, val_loss=None if trial.val_error is None else trial.initial["val_loss"])
    return row


def start_kind(specification: TrialSpec | None) -> str:
    """Name how a trial starts.

    Args:
        specification: of the trial; None where it is not on record.

    Returns:
        `scratch`, `dense` (the nearest weights to trained ones), `outputs`, `in_order` or `in_order_relu`.
    """
    start = specification.start if specification else None
    return "scratch" if start is None else start.kind


def trained_seconds(trial: TrialRecord) -> float:
    """Add up the seconds for which a study trained a trial.

    Args:
        trial: the record.

    Returns:
        Seconds; 0 for a trial that another study of the series has trained.
    """
    return 0.0 if trial.adopted else sum(epoch.get("epoch_seconds", 0.0) for epoch in trial.epochs.values())


def trial_from_row(row: Mapping[str, Any]) -> TrialRecord:
    """Read the trial of a row that `trial_to_row` made.

    Args:
        row: values by column.

    Returns:
        The record with its last epoch alone; the others are in the table of epochs.

    Raises:
        KeyError: a column is missing.
        TypeError: a column holds JSON of another kind than the record's field.
        ValueError: a column holds no JSON, no known role or status, or a damaged specification.
    """
    try:
        read_fields = _plain_to_fields({name: _read_json(row, column) for column, name in JSON_COLUMNS.items()})
    except InputError as error:
        raise ValueError(str(error)) from error
    trial = TrialRecord(
        **{name: row[name] for name in COPIED_COLUMNS}, role=Role(row["role"]), status=Status(row["status"]),
        **read_fields,
        counts={name: row[name] for name in COUNTS if row.get(name) is not None},
        point_id=row["point_id"] or "", broken=row["broken"] or "", postponed=row.get("postponed") or "",
    )  # fmt: skip
    if row["epochs"]:
        trial.epochs[row["epochs"]] = {name: row[name] for name in EPOCH_METRICS if row.get(name) is not None}
    return trial


def _read_json(row: Mapping[str, Any], column: str) -> Any:
    content = json.loads(row.get(column) or "{}") if column in NEW_COLUMNS else json.loads(row[column])
    kind = list if JSON_COLUMNS[column] in LIST_FIELDS else dict
    if not isinstance(content, kind):
        raise TypeError(f"{column} must be a JSON {'list' if kind is list else 'object'}, but is {row[column]}")
    return content


def results_to_table(study: StudyRecord) -> pa.Table:
    """Write the trials of a study as an Arrow table of RESULTS_SCHEMA.

    Args:
        study: the study.

    Returns:
        One row a trial, in order of proposal; the study's own fields are metadata.
    """
    table = pa.Table.from_pylist([trial_to_row(study.name, trial) for trial in study.trials.values()], RESULTS_SCHEMA)
    return table.replace_schema_metadata({STUDY_KEY: json.dumps(study_fields(study)).encode()})


def study_fields(study: StudyRecord) -> PlainFields:
    """Give a study without its trials as plain data (inverse: `study_from_fields`).

    Args:
        study: the study.

    Returns:
        The fields by their names on disk.
    """
    names = [field.name for field in fields(StudyRecord) if field.name != "trials"]
    return {STORED_NAMES.get(name, name): getattr(study, name) for name in names} | {"header": study.header.to_json()}


def study_from_fields(content: Mapping[str, Any], trials: dict[str, TrialRecord]) -> StudyRecord:
    """Restore a study from what `study_fields` gave.

    Args:
        content: fields by their names on disk.
        trials: the study's trials by id, in order of proposal.

    Returns:
        The study.

    Raises:
        InputError: the header is damaged.
        TypeError: a field is unknown.
    """
    names = {stored: name for name, stored in STORED_NAMES.items()}
    attributes = {names.get(name, name): value for name, value in content.items()}
    return StudyRecord(**{**attributes, "header": StudyHeader.parse(content.get("header", {}))}, trials=trials)


def trial_fields(trial: TrialRecord) -> PlainFields:
    """Give a trial without its epochs as plain data (inverse: `trial_from_fields`).

    Args:
        trial: the record.

    Returns:
        The record's fields by name.
    """
    plain = {field.name: getattr(trial, field.name) for field in fields(TrialRecord) if field.name != "epochs"}
    return plain | {"specification": trial.specification.to_json() if trial.specification else {}}


def trial_from_fields(content: Mapping[str, Any]) -> TrialRecord:
    """Restore a trial from what `trial_fields` gave.

    Args:
        content: the record's fields by name.

    Returns:
        The record, without epochs.

    Raises:
        InputError: the specification is damaged.
        TypeError: a field is unknown.
        ValueError: the role or the status is unknown.
    """
    fields_of_trial = _plain_to_fields(content)
    return TrialRecord(**{**fields_of_trial, "role": Role(content["role"]), "status": Status(content["status"])})


def _plain_to_fields(content: Mapping[str, Any]) -> PlainFields:
    """Read the typed parts of a record's plain fields."""
    return {**content, "specification": parse_record_specification(content.get("specification", {}))}


def epoch_to_row(trial_id: str, epoch: int, metrics: Mapping[str, float]) -> dict[str, object]:
    """Write one epoch as a row of EPOCHS_SCHEMA; a metric that is missing is None."""
    stages = [(name, value) for name, value in metrics.items() if name.startswith(PART_METRIC_PREFIXES)]
    columns = {name: metrics.get(name) for name in ("time", *EPOCH_METRICS)}
    return {"trial_id": trial_id, "epoch": epoch, **columns, STAGE_COLUMN: stages}


def metrics_from_row(row: Mapping[str, Any]) -> dict[str, float]:
    """Read the metrics, and "time", of a row that `epoch_to_row` made."""
    metrics = {name: row[name] for name in ("time", *EPOCH_METRICS) if row.get(name) is not None}
    return metrics | dict(row.get(STAGE_COLUMN) or ())


def epochs_to_table(study: StudyRecord) -> pa.Table:
    """Write every epoch of every trial as an Arrow table of EPOCHS_SCHEMA.

    Args:
        study: the study.

    Returns:
        One row an epoch.
    """
    rows = [
        epoch_to_row(trial.trial_id, number, metrics)
        for trial in study.trials.values()
        for number, metrics in sorted(trial.epochs.items())
    ]
    return pa.Table.from_pylist(rows, EPOCHS_SCHEMA)


def write_tables(study: StudyRecord, folder: Path) -> None:
    """Write results.parquet and epochs.parquet, each whole or not at all.

    Both carry the same generation, so that a reader notices when it has met one table of each writing.

    Args:
        study: the study.
        folder: of the study.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    generation = {GENERATION_KEY: uuid.uuid4().hex.encode()}
    with ExitStack() as stack:  # both are replaced at its end, one right after the other
        for table, name in ((epochs_to_table(study), EPOCHS_FILE), (results_to_table(study), RESULTS_FILE)):
            temporary = stack.enter_context(atomic_path(folder / name))
            pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **generation}), temporary)


def read_tables(folder: Path) -> StudyRecord:
    """Read a study from results.parquet and, where it is there, epochs.parquet.

    Where a writer is just replacing them, the reader waits up to READ_SECONDS for both tables of one writing.

    Args:
        folder: of the study.

    Returns:
        The study.

    Raises:
        InputError: a table is damaged, or it lacks a column, because another version wrote it or it is no table of a
            study; or the tables do not belong together.
    """
    end = time.monotonic() + READ_SECONDS
    try:
        while True:
            results, epochs = _read_table(folder / RESULTS_FILE), _read_table(folder / EPOCHS_FILE)
            if epochs is None or _generation(results) == _generation(epochs):
                return _read_study(folder, results, epochs)
            if time.monotonic() > end:
                raise InputError(
                    f"{RESULTS_FILE} and {EPOCHS_FILE} of {folder} were not written together: try again if the study "
                    f"is running; if it has its journal, `python -m sweeps.tracking {shlex.quote(str(folder))}` writes "
                    "both again"
                )
            time.sleep(POLL_SECONDS)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:  # pyarrow's are among them
        raise InputError(
            f"{RESULTS_FILE} or {EPOCHS_FILE} of {folder} is damaged ({first_line(error)}); if the study still has its "
            f"journal, `python -m sweeps.tracking {shlex.quote(str(folder))}` writes them again"
        ) from error


def read_study_fields(folder: Path) -> PlainFields:
    """Read what results.parquet says of the study itself.

    Args:
        folder: of the study.

    Returns:
        As `study_fields` gives; empty where the table has none.

    Raises:
        InputError: the table is damaged.
    """
    try:
        metadata = pq.read_schema(folder / RESULTS_FILE).metadata or {}
        return dict(json.loads(metadata.get(STUDY_KEY, b"{}")))
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"{folder / RESULTS_FILE} is damaged ({first_line(error)})") from error


def _read_table(path: Path) -> pa.Table | None:
    """The table; None if there is no such file and there need not be one."""
    return pq.read_table(path) if path.name == RESULTS_FILE or path.is_file() else None


def _generation(table: pa.Table) -> bytes:
    """Of which writing a table is; empty for tables of earlier versions, and of a study that was put together."""
    return bytes((table.schema.metadata or {}).get(GENERATION_KEY, b""))


def _read_study(folder: Path, table: pa.Table, epochs: pa.Table | None) -> StudyRecord:
    missing = [name for name in RESULTS_SCHEMA.names if name not in (*table.column_names, *NEW_COLUMNS)]
    if missing:
        raise InputError(
            f"{folder / RESULTS_FILE} was written by another version: it has no {', '.join(missing[:5])}; if the study "
            f"still has its journal, `python -m sweeps.tracking {shlex.quote(str(folder))}` writes the table again"
        )
    trials = {row["trial_id"]: trial_from_row(row) for row in table.to_pylist()}
    for row in epochs.to_pylist() if epochs is not None else ():
        if row["trial_id"] not in trials:
            raise InputError(
                f"{folder / EPOCHS_FILE} has epochs of {row['trial_id']!r}, which {RESULTS_FILE} does not have"
            )
        trials[row["trial_id"]].epochs[row["epoch"]] = metrics_from_row(row)
    fields_of_study = json.loads((table.schema.metadata or {}).get(STUDY_KEY, b"{}"))
    try:
        study = study_from_fields(fields_of_study, trials)
    except InputError as error:  # it does not know the file
        raise ValueError(str(error)) from error
    if not study.name:
        study.header = study.header.named(folder.resolve().name)
    return study
