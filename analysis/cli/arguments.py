"""What the commands of this room share: which study, read from where, and where it is kept."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.utils.progress import silent
from lowrank.errors import InputError
from lowrank.utils.cli import OneLineParser, run_command
from sweeps.records.load import STUDIES, find_study, load_study
from sweeps.records.model import StudyRecord


def add_source(parser: argparse.ArgumentParser) -> None:
    """--study, --studies and --tracking-uri."""
    parser.add_argument("--study", required=True, metavar="NAME", help="a study's name, or its folder")
    add_stores(parser)


def add_stores(parser: argparse.ArgumentParser) -> None:
    """Where studies are: --studies and --tracking-uri."""
    parser.add_argument("--studies", type=Path, default=STUDIES, metavar="DIR", help="where studies are (studies/)")
    parser.add_argument("--tracking-uri", metavar="URI", help="read the study from this MLflow store instead")


def load_source(arguments: argparse.Namespace, say: Callable[[str], None] = silent) -> StudyRecord:
    """The study that was asked for; `say` is told how far the reading is.

    Raises:
        InputError: there is none; the text lists those there are.
    """
    return load_named(arguments.study, arguments, say)


def load_named(name: str, arguments: argparse.Namespace, say: Callable[[str], None] = silent) -> StudyRecord:
    """A study by name or folder, or by name from the tracking store; raises InputError."""
    if arguments.tracking_uri:
        from analysis.sources.mlflow import load_from_mlflow

        return load_from_mlflow(arguments.tracking_uri, name, say)
    return load_study(find_study(name, arguments.studies))


def source_folder(arguments: argparse.Namespace) -> Path:
    """The study's own folder; of a study that is read from a tracking store, the one that it would have."""
    if arguments.tracking_uri:
        return Path(arguments.studies) / arguments.study
    return find_study(arguments.study, arguments.studies)


def open_page(page: Path) -> None:
    """Open a page in the user's browser; a machine without one is told where the page is."""
    address = page.resolve().as_uri()
    if not webbrowser.open(address):
        print(f"there is no browser here that could be started; open {address}", file=sys.stderr)


def output_folder(folder: Path) -> Path:
    """The folder that --out names, made if need be; raises InputError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise InputError(f"--out must be a folder that can be written, but got {folder}")
    return folder


def run_script(
    name: str, description: str | None, add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Parse a command line and run the command, for the commands that are also scripts.

    Args:
        name: of the script, without `.py`.
        description: the docstring of its module, of which `--help` shows the first line.
        add_arguments: declares its options.
        run: runs it on the parsed options and returns its exit code.
        argv: the words of the command line; None for those of the process.

    Returns:
        The exit code of `run`; 2, with one line on standard error, for bad input.
    """
    parser = OneLineParser(prog=f"python analysis/{name}.py", description=(description or "").partition("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))
