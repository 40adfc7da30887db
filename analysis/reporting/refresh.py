"""What is made of a study's records and kept in its folder: the summary's table and picture, and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis.reporting.front_figure import draw_front
from analysis.reporting.summary_table import write_csv
from analysis.reporting.write import PAGE_FILE, write_report
from analysis.stats.front import collect_points
from analysis.utils.progress import silent
from sweeps.records.model import StudyRecord
from sweeps.records.names import FRONT_PICTURE, REPORT_FOLDER, SUMMARY_TABLE


def write_summary(study: StudyRecord, folder: Path) -> list[str]:
    """Write summary.csv and, where a trial was trained to its end, front.png; returns the names of the files."""
    write_csv(study, folder / SUMMARY_TABLE)
    if not any(point.finished for point in collect_points(study)):
        (folder / FRONT_PICTURE).unlink(missing_ok=True)  # of trials that count no more
        return [SUMMARY_TABLE]
    draw_front(study, folder / FRONT_PICTURE)
    return [FRONT_PICTURE, SUMMARY_TABLE]


def refresh_outputs(study: StudyRecord, folder: Path, step: Callable[[str], None] = silent) -> list[str]:
    """Make those again that are there, of records that have changed; returns their names. `step` is told each step."""
    made = []
    if (folder / SUMMARY_TABLE).is_file():
        step("summary")
        made += write_summary(study, folder)
    if (folder / REPORT_FOLDER / PAGE_FILE).is_file():
        write_report(study, folder / REPORT_FOLDER, folder, step=step)
        made.append(f"{REPORT_FOLDER}/")
    return made
