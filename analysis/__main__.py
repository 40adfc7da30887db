"""`python -m analysis COMMAND`: the commands that read studies; `--help` lists them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from lowrank.utils import OneLineParser, run_command

# Module and description. The modules are imported by name: a command need not wait for what others import
COMMANDS = {
    "summary": ("analysis.cli.summary", "print the table and the answer, write front.png and summary.csv"),
    "mark": ("analysis.cli.mark", "leave a broken trial out of all tables and fronts, or add a note to a trial"),
    "log": ("analysis.cli.log", "a research log of all studies, which keeps what you write into it"),
    "note": ("analysis.cli.note", "keep a note, a takeaway or a to-do on a study for the log"),
    "profile": ("analysis.cli.time_profile", "where the time of a study went"),
    "audit": ("analysis.cli.audit", "whether early stopping would have stopped the winner, by each rule"),
    "check": ("analysis.cli.check", "read every file of a study and say what is damaged; changes nothing"),
    "repair": ("analysis.cli.repair", "keep the intact records of a damaged study, and say what is left out"),
    "against": ("analysis.cli.against", "every value of a field against one of them, paired by seed"),
    "report": ("analysis.report", "one HTML page that answers the study's question"),
    "compare": ("analysis.compare", "fronts, hypervolume at equal cost and the trials that differ"),
    "export": ("analysis.export", "the chosen model as safetensors, torch.export program and ONNX, with proof"),
    "collate": ("analysis.collate", "the records of several machines or stores as one study"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code of the command; 2 for bad input.
    """
    # Matrices are small here, and threads that wait for a busy core double the time. numpy reads it when it is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _run(words))


def _run(words: Sequence[str]) -> int:
    parser = OneLineParser(prog="python -m analysis", description="tables, fronts and pictures of a study")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if name in words[:1]:
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    arguments = parser.parse_args(words)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
