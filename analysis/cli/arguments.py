"""Options that several commands share, and what they stand for: which study, read from where, written where."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.utils import silent
from lowrank.errors import InputError, unknown
from lowrank.utils import ExitCode, OneLineParser, report_error, run_command
from sweeps.records import (
    STUDIES_FOLDER,
    StudyRecord,
    check_group,
    find_study,
    list_studies,
    load_study,
    read_group,
)


def add_study(parser: argparse.ArgumentParser) -> None:
    """Declare a study as first argument, and --studies.

    Args:
        parser: receives them.
    """
    parser.add_argument("study", help="a study's name, or its folder")
    parser.add_argument("--studies", type=Path, default=STUDIES_FOLDER, help="where studies are (default: studies)")


def study_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the study that the first argument names.

    Args:
        arguments: as `add_study` declares them.

    Returns:
        The folder, which has records.

    Raises:
        InputError: there is no such study; the message lists those there are.
    """
    return find_study(arguments.study, arguments.studies)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declare --study, --studies and --tracking-uri.

    Args:
        parser: receives them.
    """
    parser.add_argument("--study", required=True, metavar="NAME", help="a study's name, or its folder")
    add_stores(parser)


def add_stores(
    parser: argparse.ArgumentParser, tracking: str = "read the study from this MLflow store instead"
) -> None:  # fmt: skip
    """Declare --studies and --tracking-uri.

    Args:
        parser: receives them.
        tracking: what the store is for.
    """
    parser.add_argument(
        "--studies", type=Path, default=STUDIES_FOLDER, metavar="DIR", help="where studies are (studies/)"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help=tracking)


def load_source(arguments: argparse.Namespace, notify: Callable[[str], None] = silent) -> StudyRecord:
    """Read the study that --study names.

    Args:
        arguments: as `add_source` declares them.
        notify: is called with how far the reading is.

    Returns:
        The records.

    Raises:
        InputError: there is no such study; the message lists those there are.
    """
    return load_named(arguments.study, arguments, notify)


def load_named(name: str, arguments: argparse.Namespace, notify: Callable[[str], None] = silent) -> StudyRecord:
    """Read a study from its folder, or from the tracking store if one is given.

    Args:
        name: of the study, or its folder.
        arguments: as `add_stores` declares them.
        notify: is called with how far the reading is.

    Returns:
        The records.

    Raises:
        InputError: there is no such study; the message lists those there are.
    """
    if arguments.tracking_uri:
        from analysis.sources import load_from_mlflow

        return load_from_mlflow(arguments.tracking_uri, name, notify)
    return load_study(find_study(name, arguments.studies))


def group_members(arguments: argparse.Namespace) -> list[str]:
    """Find the studies of the group that --group names.

    Args:
        arguments: as `add_stores` declares them, with `group`.

    Returns:
        The names of the studies.

    Raises:
        InputError: no study is of this group; the message lists the groups there are.
    """
    if arguments.tracking_uri:
        from analysis.sources import find_group

        members, groups = find_group(arguments.tracking_uri, check_group(arguments.group)), {}
    else:
        groups = {name: read_group(arguments.studies / name) for name in list_studies(arguments.studies)}
        members = [name for name, group in groups.items() if group == arguments.group]
    if not members:
        raise unknown("group", arguments.group, sorted(set(filter(None, groups.values()))) or ["none found"])
    return members


def source_folder(arguments: argparse.Namespace) -> Path:
    """Return the study's own folder.

    Args:
        arguments: as `add_source` declares them.

    Returns:
        The folder; of a study that is read from a tracking store, the one that it would have.

    Raises:
        InputError: there is no such study.
    """
    if arguments.tracking_uri:
        return Path(arguments.studies) / arguments.study
    return find_study(arguments.study, arguments.studies)


def open_page(page: Path) -> None:
    """Open a page in the user's browser; without one, print where it is.

    Args:
        page: an HTML file.
    """
    address = page.resolve().as_uri()
    if not webbrowser.open(address):
        print(f"there is no browser here that could be started; open {address}", file=sys.stderr)


def output_folder(folder: Path) -> Path:
    """Make the folder that --out names.

    Args:
        folder: to make, unless it exists.

    Returns:
        The same folder.

    Raises:
        InputError: it is no folder, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"--out must be a folder that can be written, but got {folder}")
    return folder


def refuse_script(command: str) -> int:
    """Refuse to run a command's module as a file, which would do nothing.

    Args:
        command: its name, as `python -m analysis` has it.

    Returns:
        The exit code, 2.
    """
    return report_error(ExitCode.BAD_INPUT, f"error: this file is no script; run python -m analysis {command}")


def run_script(
    name: str, description: str | None, add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Parse a command line and run the command of a script.

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
