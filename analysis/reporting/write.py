"""Writes what lies beside a study's records: the report with its pictures and tables, and the summary's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path

from analysis.findings import tracking_link
from analysis.reporting.contents import build_report
from analysis.reporting.front_figure import write_front_picture
from analysis.reporting.render import drawing_executor
from analysis.reporting.sections import SECTIONS, new_page
from analysis.reporting.summary_table import write_summary_csv
from analysis.stats import FrontPoint, collect_points
from analysis.utils import silent
from lowrank.utils import relative_path, write_text
from sweeps.records import (
    EPOCHS_FILE,
    FRONT_PICTURE,
    JOURNAL_FILE,
    REPORT_FOLDER,
    SUMMARY_TABLE,
    StudyRecord,
    is_study,
    write_tables,
)

PAGE_FILE = "report.html"
LARGE_BYTES = {JOURNAL_FILE: 8e6, EPOCHS_FILE: 3e5}  # what some 400 trials of 100 epochs take
STEPS = len(SECTIONS) + 2  # of writing a report

FileIdentity = tuple[int, int]  # inode and time of change in ns, of which one differs once a file is written anew


def write_report(
    study: StudyRecord, folder: Path, source: Path, uri: str | None = None, step: Callable[[str], None] = silent
) -> Path:
    """Write the page and everything beside it.

    Pictures and tables that an earlier page linked to and this one does not are deleted: they show records that no
    longer count. Files of others stay.

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
    earlier = _linked_files(path)
    with drawing_executor(len(study.trials)) as executor:
        step("numbers")
        if not is_study(source):
            write_tables(study, folder)
        report = build_report(study, Path(relative_path(source if is_study(source) else folder)), executor)
        page = new_page(study, report.provenance, tracking_link(study, source, uri), folder, executor)
        for name, section in SECTIONS:
            step(name)
            section(page, study, report, folder)
        step("page")
        write_text(path, page.html())
    for name in earlier.keys() - _linked_files(path).keys():
        if _identity(folder / name) == earlier[name]:
            (folder / name).unlink(missing_ok=True)
    return path


def is_large(source: Path) -> bool:
    """Estimate whether several processes will draw a study's pictures.

    Args:
        source: the study's folder. The size of its files tells how many trials it has; they are not read.

    Returns:
        Whether it is large; False as well for a folder without records.
    """
    sizes = (path.stat().st_size > limit for name, limit in LARGE_BYTES.items() if (path := source / name).is_file())
    return next(sizes, False)


def write_summary(study: StudyRecord, points: Sequence[FrontPoint], folder: Path) -> list[str]:
    """Write summary.csv and, where a trial was trained to its end, front.png.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        folder: to write into.

    Returns:
        The names of the files.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    write_summary_csv(points, folder / SUMMARY_TABLE)
    if not any(point.finished for point in points):
        (folder / FRONT_PICTURE).unlink(missing_ok=True)  # of trials that no longer count
        return [SUMMARY_TABLE]
    write_front_picture(study, points, folder / FRONT_PICTURE)
    return [FRONT_PICTURE, SUMMARY_TABLE]


def refresh_outputs(study: StudyRecord, folder: Path, step: Callable[[str], None] = silent) -> list[str]:
    """Write those of a study's files again that exist, after its records have changed.

    Args:
        study: the records.
        folder: of the study.
        step: is called with the name of each step.

    Returns:
        The names of what was written.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    written = []
    if (folder / SUMMARY_TABLE).is_file():
        step("summary")
        written += write_summary(study, collect_points(study), folder)
    if (folder / REPORT_FOLDER / PAGE_FILE).is_file():
        write_report(study, folder / REPORT_FOLDER, folder, step=step)
        written.append(f"{REPORT_FOLDER}/")
    return written


def _linked_files(page: Path) -> dict[str, FileIdentity | None]:
    """Pictures and tables that a page links to, by name; none where there is no page."""
    if not page.is_file():
        return {}
    names = re.findall(r'href="([^"/:]+\.(?:png|csv))"', page.read_text(encoding="utf-8"))
    return {name: _identity(page.with_name(name)) for name in map(unescape, names)}


def _identity(path: Path) -> FileIdentity | None:
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
