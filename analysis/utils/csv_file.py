"""Writes CSV files that spreadsheets open without running what is in them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lowrank.utils import atomic_write

FORMULA_STARTS = ("=", "+", "-", "@")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV in UTF-8, all of it or nothing.

    A spreadsheet runs a text that begins like a formula. Names of studies, notes and reasons of failures come from
    elsewhere, so such a text gets an apostrophe in front; numbers stay as they are.

    Args:
        path: the file to write; its folder must exist.
        columns: the headings.
        rows: the cells of each row; None is an empty cell.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_escaped(column) for column in columns])
        writer.writerows([[_escaped(cell) for cell in row] for row in rows])


def _escaped(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell
