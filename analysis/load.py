"""Finds studies and loads what they recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lowrank.errors import InputError, unknown
from sweeps.journal import read_journal
from sweeps.records import (
    COUNTS,
    EPOCH_METRICS,
    EPOCHS_FILE,
    JOURNAL_FILE,
    RESULTS_FILE,
    Role,
    Status,
    StudyRecord,
    TrialRecord,
    fold,
    metrics_of_row,
)

STUDIES = Path("studies")
ADDED_LATER = ("point_id",)  # columns that older tables lack


def list_studies(root: Path = STUDIES) -> list[str]:
    """Names of the studies under `root`, in alphabetical order."""
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if is_study(folder))


def is_study(folder: Path) -> bool:
    """Whether `folder` holds a journal or a results table."""
    return any((folder / name).is_file() for name in (JOURNAL_FILE, RESULTS_FILE))


def find_study(name: str, root: Path = STUDIES) -> Path:
    """The folder of a study, given as a path or as a name under `root`.

    Raises:
        InputError: neither exists; the text lists the studies there are.
    """
    for folder in (Path(name), root / name):
        if is_study(folder):
            return folder
    raise unknown("study", name, list_studies(root) or [f"none: {root}/ holds no study yet"])


def load_study(folder: Path) -> StudyRecord:
    """A study from its journal, or, where only the tables were kept, from results.parquet and epochs.parquet.

    The tables carry no header: a study loaded from them knows its name but not its question, images or strata.

    Raises:
        InputError: the journal holds no study yet, or one of its lines is damaged.
    """
    if not (folder / JOURNAL_FILE).is_file():
        return load_tables(folder)
    try:
        study = fold(read_journal(folder / JOURNAL_FILE))
    except ValueError as error:
        raise InputError(str(error)) from error
    if not study.header:
        raise InputError(f"a study's journal must begin with a study event, but {folder} has none yet")
    return study


def load_tables(folder: Path) -> StudyRecord:
    """A study from results.parquet and, where it is there, epochs.parquet; columns that older tables lack are None."""
    rows = pq.read_table(folder / RESULTS_FILE).to_pylist()
    trials = {row["trial_id"]: _trial(row) for row in rows}
    if (folder / EPOCHS_FILE).is_file():
        for row in pq.read_table(folder / EPOCHS_FILE).to_pylist():
            trials[row["trial_id"]].epochs[row["epoch"]] = metrics_of_row(row)
    return StudyRecord(header={"name": rows[0]["study"] if rows else folder.name}, trials=trials)


def _trial(row: dict[str, Any]) -> TrialRecord:
    trial = TrialRecord(
        trial_id=row["trial_id"],
        role=Role(row["role"]),
        stratum=row["stratum"],
        status=Status(row["status"]),
        reason=row["reason"],
        parameters=json.loads(row["parameters"]),
        aliases=json.loads(row["aliases"]),
        specification=json.loads(row["specification"]),
        counts={name: row[name] for name in COUNTS if row[name] is not None},
        proposed_at=row["proposed_at"],
        finished_at=row["finished_at"],
        test_error=row["test_error"],
        broken=row.get("broken") or "",
        notes=(row.get("note") or "").splitlines(),
        tags=json.loads(row.get("tags") or "{}"),
    )
    trial.attempts = [{} for _ in range(row["attempts"] or 0)]
    if trial.attempts:
        trial.attempts[0]["start_seconds"] = row["start_seconds"] or 0.0  # of all attempts: the table keeps their sum
    for name in ADDED_LATER:
        if row.get(name) is not None:
            setattr(trial, name, row[name])
    if row["epochs"]:
        trial.epochs[row["epochs"]] = {name: row[name] for name in EPOCH_METRICS if row.get(name) is not None}
    return trial


def data_label(name: str) -> str:
    """A data set's name for readers: of a folder of images its last part, e.g. `parquet:/data/flowers` -> `flowers`."""
    kind, colon, folder = name.partition(":")
    return Path(folder).name if colon and kind in ("parquet", "folder") else name
