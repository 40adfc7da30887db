"""Command line: python -m analysis summary STUDY, mark STUDY TRIAL, audit STUDY, against STUDY FIELD=VALUE.

The other parts are of the names of their files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis import collate, compare, export, report
from analysis.cli.mark import add_arguments, mark
from analysis.findings.answer import answer_text
from analysis.findings.stopping_audit import audit_text
from analysis.findings.time_profile import profile, profile_lines
from analysis.reporting.refresh import write_summary
from analysis.reporting.summary_table import print_summary
from analysis.sources.push_to_mlflow import bring_made
from analysis.stats import versus as against
from analysis.utils.progress import steps
from lowrank.utils.cli import OneLineParser, run_command
from sweeps.records.load import STUDIES, find_study, load_study

PARTS = {
    "report": (report, "one HTML page that answers the study's question"),
    "compare": (compare, "fronts, hypervolume at equal cost and the trials that differ"),
    "export": (export, "the chosen model as safetensors, torch.export program and ONNX, with proof"),
    "collate": (collate, "the records of several machines or stores as one study"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the command's exit code, 2 with one line for bad input."""
    parser = OneLineParser(prog="python -m analysis", description="tables, fronts and pictures of a study")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("summary", help="print the table and the answer, write front.png and summary.csv")
    _of_study(command, lambda folder, arguments: summary(folder))
    marking = commands.add_parser("mark", help="take a broken trial out of all conclusions, or remark on one")
    _of_study(marking, mark)
    add_arguments(marking)
    profiling = commands.add_parser("profile", help="where the time of a study went")
    _of_study(profiling, lambda folder, arguments: print(*profile_lines(profile(load_study(folder))), sep="\n"))
    auditing = commands.add_parser("audit", help="whether early stopping would have stopped the winner, by each rule")
    _of_study(auditing, lambda folder, arguments: audit(folder))
    pairing = commands.add_parser("against", help="every value of a field against one of them, paired by seed")
    _of_study(pairing, against.run)
    pairing.add_argument("base", metavar="FIELD=VALUE", help="such as method.name=thin_dense")
    for name, (part, words) in PARTS.items():
        command = commands.add_parser(name, help=words, description=words)
        part.add_arguments(command)
        command.set_defaults(run=part.run)
    arguments = parser.parse_args(argv)
    return run_command(lambda: arguments.run(arguments) or 0)


def _of_study(command: argparse.ArgumentParser, run: Callable[[Path, argparse.Namespace], int | None]) -> None:
    """Let a command take one study and run on its folder."""
    command.add_argument("study", help="a study's name, or its folder")
    command.add_argument("--studies", type=Path, default=STUDIES, help="where studies are (default: studies)")
    command.set_defaults(run=lambda arguments: run(find_study(arguments.study, arguments.studies), arguments))


def audit(folder: Path) -> None:
    """Print what each rule of early stopping would have done to the study's winners."""
    with steps("audit", 2) as step:
        step("reading")
        study = load_study(folder)
        step("rules")
        text = audit_text(study)
    print(text)


def summary(folder: Path) -> None:
    """Print the study's table and answer, and write its picture and CSV into its folder."""
    with steps("summary", 2) as step:
        step("reading")
        study = load_study(folder)
        step("answer")
        answer = answer_text(study)
    print_summary(study, answer)  # first: there may be no room for files
    with steps("summary", 1) as step:
        step("table and picture")
        written = write_summary(study, folder)
    print(f"\nwritten into {folder}: {', '.join(written)}")
    bring_made(study, folder)


if __name__ == "__main__":
    sys.exit(main())
