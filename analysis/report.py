"""`python analysis/report.py --study tt_dims`: one HTML page that answers a study's question and needs no network.

Beside the page lie each picture as PNG and each table as CSV; where the study was read from a tracking store, its own
tables too, from which any trial can be trained again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

# `python analysis/report.py` puts analysis/ first on the module path; the project is imported as packages only.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from analysis.cli.arguments import add_source, load_source, open_page, output_folder, source_folder
from analysis.findings.provenance import tracked
from analysis.reporting.contents import contents
from analysis.reporting.render import prepare_studio, studio
from analysis.reporting.sections import SECTIONS, new_page
from analysis.sources.push_to_mlflow import bring_made
from analysis.utils.progress import silent, steps
from lowrank.utils.cli import OneLineParser
from lowrank.utils.endings import exit_code
from sweeps.records.load import is_study
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, REPORT_FOLDER, StudyRecord
from sweeps.records.tables import write_tables

PAGE_FILE = "report.html"
LARGE = {JOURNAL_FILE: 8e6, EPOCHS_FILE: 3e5}  # bytes that some 400 trials of 100 epochs take
STEPS = len(SECTIONS) + 2  # of writing it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_source(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: STUDY/report)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the report, say where it is, and bring it into the MLflow store that has the study; raises InputError."""
    with steps("report", 1 + STEPS) as step:
        step("reading")
        if not arguments.tracking_uri and _is_large(source_folder(arguments)):
            prepare_studio()
        study = load_source(arguments, step.detail)
        source = source_folder(arguments)
        folder = output_folder(arguments.out or source / REPORT_FOLDER)
        page = write_report(study, folder, source, arguments.tracking_uri, step)
    print(f"{page}: {len(study.trials):,} trials; pictures (PNG) and tables (CSV) beside it")
    if arguments.open:
        open_page(page)
    if not (arguments.out or arguments.tracking_uri):
        bring_made(study, folder.parent)
    return 0


def write_report(
    study: StudyRecord, folder: Path, source: Path, uri: str | None = None, step: Callable[[str], None] = silent
) -> Path:
    """Write the page and everything beside it into `folder`, which is made; returns the page's path.

    Args:
        study: the records.
        folder: of the report.
        source: the study's own folder; where it is not on this machine its tables are written into the report's.
        uri: the tracking store that the study was read from, if it was.
        step: told the name of each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    earlier = _linked(path)
    with studio(folder, len(study.trials)) as drawing:
        step("numbers")
        if not is_study(source):
            write_tables(study, folder)
        found = contents(study, _shown(source if is_study(source) else folder), drawing.start)
        page = new_page(study, found.about, tracked(study, source, uri), drawing)
        for name, section in SECTIONS:
            step(name)
            section(page, study, found, folder)
        step("page")
        temporary = path.with_name(f"{PAGE_FILE}.tmp")
        temporary.write_text(page.html(), encoding="utf-8")
        os.replace(temporary, path)
    for name in earlier.keys() - _linked(path).keys():
        if _identity(folder / name) == earlier[name]:
            (folder / name).unlink(missing_ok=True)
    return path


def _linked(page: Path) -> dict[str, tuple[int, int] | None]:
    """Pictures and tables beside a report, by name, as they are now. What a later report does not make again shows
    records that count no more."""
    if not page.is_file():
        return {}
    names = re.findall(r'href="([^"/:]+\.(?:png|csv))"', page.read_text(encoding="utf-8"))
    return {name: _identity(page.with_name(name)) for name in map(unescape, names)}


def _identity(path: Path) -> tuple[int, int] | None:
    """Differs as soon as a file is written anew; None for a file that is not there."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _is_large(source: Path) -> bool:
    """Whether a study's records on disk are those of so many trials that a studio will have processes."""
    found = next(((path, most) for name, most in LARGE.items() if (path := source / name).is_file()), None)
    return found is not None and found[0].stat().st_size > found[1]


def _shown(folder: Path) -> Path:
    """A folder as the reader would type it."""
    return Path(os.path.relpath(folder)) if folder.resolve().is_relative_to(Path.cwd()) else folder.resolve()


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line for bad input."""
    parser = OneLineParser(prog="python analysis/report.py", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
