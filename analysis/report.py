"""`python -m analysis report --study tt_dims`: one HTML page that answers a study's question.

The page loads nothing from the internet. Each picture lies beside it as PNG and each table as CSV. A study that was
read from a tracking store also gets its records as Parquet tables, from which any trial can be trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from analysis.cli import add_source, load_from, open_page, output_folder, run_script, source_folder
from analysis.reporting import STEPS, is_large, start_forkserver, write_report
from analysis.sources import push_if_tracked
from analysis.stats import check_equal, mixed_fields
from analysis.utils import steps
from lowrank.utils import format_counted, relative_path
from sweeps.records import REPORT_FOLDER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `report`.

    Args:
        parser: the options are added to it.
    """
    add_source(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: STUDY/report)")
    parser.add_argument(
        "--mixed", action="store_true", help="report trials of other networks, epochs or recipes as one"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print where it is.

    A report in the study's own folder is also copied into the MLflow store that has the study, if there is one.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study, its trials are of other networks, epochs or recipes without `--mixed`, or
            the output folder cannot be written.
    """
    with steps("report", 1 + STEPS) as step:  # one for reading
        step("reading")
        source = source_folder(arguments.study, arguments.studies, arguments.tracking_uri)
        if not arguments.tracking_uri and is_large(source):
            start_forkserver()  # takes a second, during which the study is read
        study = load_from(arguments.study, arguments.studies, arguments.tracking_uri, step.detail)
        check_equal(mixed_fields(study), allowed=arguments.mixed)
        folder = output_folder(arguments.out or source / REPORT_FOLDER)
        page = write_report(study, folder, source, arguments.tracking_uri, step)
    trials = format_counted(len(study.trials), "trial")
    print(f"{relative_path(page)}: {trials}; pictures (PNG) and tables (CSV) beside it")
    if arguments.open:
        open_page(page)
    if not (arguments.out or arguments.tracking_uri):
        push_if_tracked(study, folder.parent)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    return run_script("report", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
