"""`python -m analysis summary STUDY`: print the table and the answer, write front.png and summary.csv."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.findings import answer_text
from analysis.reporting import print_summary, write_summary
from analysis.sources import push_if_tracked
from analysis.stats import collect_points
from analysis.utils import steps
from sweeps.records import find_study, load_study

add_arguments = add_study


def run(arguments: argparse.Namespace) -> int:
    """Print a study's table and answer, and write its picture and CSV into its folder.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
    """
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
    print(f"\nwritten into {folder}: {', '.join(written)}")
    push_if_tracked(study, folder)
    return 0


if __name__ == "__main__":
    sys.exit(refuse_script("summary"))
