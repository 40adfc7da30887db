"""`python -m analysis COMMAND`: the commands that read studies; `--help` lists them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis import collate, compare, export, report
from analysis.cli import against, audit, check, mark, repair, summary, time_profile
from lowrank.utils import OneLineParser, run_command

COMMANDS = {
    "summary": (summary, "print the table and the answer, write front.png and summary.csv"),
    "mark": (mark, "take a broken trial out of all conclusions, or remark on one"),
    "profile": (time_profile, "where the time of a study went"),
    "audit": (audit, "whether early stopping would have stopped the winner, by each rule"),
    "check": (check, "read every file of a study and say what is damaged; changes nothing"),
    "repair": (repair, "keep all of a damaged study that is whole, and say what is left out"),
    "against": (against, "every value of a field against one of them, paired by seed"),
    "report": (report, "one HTML page that answers the study's question"),
    "compare": (compare, "fronts, hypervolume at equal cost and the trials that differ"),
    "export": (export, "the chosen model as safetensors, torch.export program and ONNX, with proof"),
    "collate": (collate, "the records of several machines or stores as one study"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code of the command; 2 for bad input.
    """
    parser = OneLineParser(prog="python -m analysis", description="tables, fronts and pictures of a study")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    return run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
