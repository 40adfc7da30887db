"""`python -m analysis summary STUDY`: print the table and the answer, write front.png and summary.csv."""

from __future__ import annotations

import argparse
import importlib
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.findings import answer_text
from analysis.reporting import print_summary, write_summary
from analysis.sources import push_if_tracked
from analysis.stats import collect_points
from analysis.utils import steps
from lowrank.utils import ExitCode, relative_path
from sweeps.records import find_study, load_study

# What is imported within functions, and takes longest
LATE_IMPORTS = ("matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.ticker", "scipy.special")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a study, --studies, and what only the driver of a study says.

    Args:
        parser: receives them.
    """
    add_study(parser)
    parser.add_argument("--when-asked", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Print a study's table and answer, and write its picture and CSV into its folder.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
    """
    if arguments.when_asked and not _is_asked():
        return ExitCode.DONE
    folder = find_study(arguments.study, arguments.studies)
    with steps("summary", 2) as step:
        step("reading")
        study = load_study(folder)
        step("answer")
        points = collect_points(study)
        answer = answer_text(study, points)
    print_summary(study, points, answer)  # before anything is written: the disk may be full
    with steps("summary", 1) as step:
        step("table and picture")
        written = write_summary(study, points, folder)
    print(f"\nwritten into {relative_path(folder)}: {', '.join(written)}")
    push_if_tracked(study, folder)
    return ExitCode.DONE


def _is_asked() -> bool:
    """Import what a summary needs, then wait for a line on the standard input; returns whether one came."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    return bool(sys.stdin.readline())


if __name__ == "__main__":
    sys.exit(refuse_script("summary"))
