"""Writes the report of a study: the page, and beside it each picture as PNG and each table as CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

from analysis.findings.provenance import tracking_link
from analysis.reporting.contents import contents
from analysis.reporting.render import drawing_executor
from analysis.reporting.sections import SECTIONS, new_page
from analysis.utils.progress import silent
from lowrank.utils.atomic_write import write_text
from sweeps.records.load import is_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE
from sweeps.records.tables import write_tables

PAGE_FILE = "report.html"
LARGE = {JOURNAL_FILE: 8e6, EPOCHS_FILE: 3e5}  # bytes that some 400 trials of 100 epochs take
STEPS = len(SECTIONS) + 2  # of writing it


def write_report(
    study: StudyRecord, folder: Path, source: Path, uri: str | None = None, step: Callable[[str], None] = silent
) -> Path:
    """Write the page and everything beside it.

    Args:
        study: the records.
        folder: of the report; it is made.
        source: the study's own folder; where it is not on this machine its tables are written into the report's.
        uri: the tracking store that the study was read from, if it was.
        step: is called with the name of each of the `STEPS`.

    Returns:
        The path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    earlier = _linked(path)
    with drawing_executor(len(study.trials)) as executor:
        step("numbers")
        if not is_study(source):
            write_tables(study, folder)
        found = contents(study, _shown(source if is_study(source) else folder), executor)
        page = new_page(study, found.about, tracking_link(study, source, uri), folder, executor)
        for name, section in SECTIONS:
            step(name)
            section(page, study, found, folder)
        step("page")
        write_text(path, page.html())
    for name in earlier.keys() - _linked(path).keys():
        if _identity(folder / name) == earlier[name]:
            (folder / name).unlink(missing_ok=True)
    return path


def is_large(source: Path) -> bool:
    """Return whether a study is so large that several processes will draw its pictures.

    Args:
        source: the study's folder; its trials are estimated from the size of its files, which are not read.

    Returns:
        False as well for a folder without records.
    """
    sizes = (path.stat().st_size > limit for name, limit in LARGE.items() if (path := source / name).is_file())
    return next(sizes, False)


def _linked(page: Path) -> dict[str, tuple[int, int] | None]:
    """Pictures and tables that a page links to, by name, with their identity. What a later report does not write again
    shows records that count no more."""
    if not page.is_file():
        return {}
    names = re.findall(r'href="([^"/:]+\.(?:png|csv))"', page.read_text(encoding="utf-8"))
    return {name: _identity(page.with_name(name)) for name in map(unescape, names)}


def _identity(path: Path) -> tuple[int, int] | None:
    """Inode and time of change, of which one differs as soon as a file is written anew; None for a missing file."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _shown(folder: Path) -> Path:
    """A folder as the reader would type it."""
    return Path(os.path.relpath(folder)) if folder.resolve().is_relative_to(Path.cwd()) else folder.resolve()
