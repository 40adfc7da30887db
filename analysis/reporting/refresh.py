"""Writes what a study's folder has beside its records: the summary's table and picture, and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.reporting.front_figure import draw_front
from analysis.reporting.summary_table import write_summary_csv
from analysis.reporting.write import PAGE_FILE, write_report
from analysis.stats.front import FrontPoint, collect_points
from analysis.utils.progress import silent
from sweeps.records.model import StudyRecord
from sweeps.records.names import FRONT_PICTURE, REPORT_FOLDER, SUMMARY_TABLE


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
        (folder / FRONT_PICTURE).unlink(missing_ok=True)  # of trials that count no more
        return [SUMMARY_TABLE]
    draw_front(study, points, folder / FRONT_PICTURE)
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
