"""Finds studies and loads what they recorded."""

from __future__ import annotations

from pathlib import Path

from lowrank.errors import InputError, unknown
from sweeps.journal import read_journal
from sweeps.records import JOURNAL_FILE, RESULTS_FILE, StudyRecord, fold
from sweeps.tables import read_tables

STUDIES = Path("studies")


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

    Raises:
        InputError: the journal holds no study yet, one of its lines is damaged, or the tables are of another version.
    """
    if not (folder / JOURNAL_FILE).is_file():
        return read_tables(folder)
    try:
        study = fold(read_journal(folder / JOURNAL_FILE))
    except ValueError as error:
        raise InputError(str(error)) from error
    if not study.header:
        raise InputError(f"a study's journal must begin with a study event, but {folder} has none yet")
    return study


def data_label(name: str) -> str:
    """A data set's name for readers: of a folder of images its last part, e.g. `parquet:/data/flowers` -> `flowers`."""
    kind, colon, folder = name.partition(":")
    return Path(folder).name if colon and kind in ("parquet", "folder") else name
