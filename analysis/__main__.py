"""Command line: python -m analysis summary STUDY, python -m analysis audit STUDY."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.answer import answer_text
from analysis.audit import audit_text
from analysis.load import STUDIES, find_study, load_study
from analysis.plots import draw_front
from analysis.tables import print_summary, write_csv
from lowrank.errors import InputError
from sweeps.records import FRONT_PICTURE, Status

SUMMARY_FILE = "summary.csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line when there is no such study."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="tables, fronts and pictures of a study")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("summary", help="print the table and the answer, write front.png and summary.csv")
    command.add_argument("study", help="a study's name, or its folder")
    command.add_argument("--studies", type=Path, default=STUDIES, help="where studies are (default: studies)")
    command.set_defaults(run=summary)
    command = commands.add_parser("audit", help="whether early stopping would have stopped the winner, by each rule")
    command.add_argument("study", help="a study's name, or its folder")
    command.add_argument("--studies", type=Path, default=STUDIES, help="where studies are (default: studies)")
    command.set_defaults(run=lambda folder: print(audit_text(load_study(folder))))
    arguments = parser.parse_args(argv)
    try:
        arguments.run(find_study(arguments.study, arguments.studies))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def summary(folder: Path) -> None:
    """Print the study's table and answer, and write its picture and CSV into its folder."""
    study = load_study(folder)
    print_summary(study, answer_text(study))
    write_csv(study, folder / SUMMARY_FILE)
    written = [SUMMARY_FILE]
    if any(trial.status is Status.COMPLETED and trial.val_error is not None for trial in study.trials.values()):
        draw_front(study, folder / FRONT_PICTURE)
        written.insert(0, FRONT_PICTURE)
    print(f"\nwritten into {folder}: {', '.join(written)}")


if __name__ == "__main__":
    sys.exit(main())
