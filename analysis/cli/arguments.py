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


def load_from(
    name: str, studies: Path, tracking_uri: str | None, notify: Callable[[str], None] = silent
) -> StudyRecord:  # fmt: skip
    """Read a study from its folder, or from the tracking store if one is given.

    Args:
        name: of the study, or its folder.
        studies: where studies are.
        tracking_uri: an MLflow store; None for the folder.
        notify: is called with how far the reading is.

    Returns:
        The records.

    Raises:
        InputError: there is no such study; the message lists those there are.
    """
    if tracking_uri:
        from analysis.sources import load_from_mlflow

        return load_from_mlflow(tracking_uri, name, notify)
    return load_study(find_study(name, studies))


def group_members(group: str, studies: Path, tracking_uri: str | None) -> list[str]:
    """Find the studies of a group.

    Args:
        group: its name.
        studies: where studies are.
        tracking_uri: an MLflow store, which is asked instead; None for none.

    Returns:
        The names of the studies.

    Raises:
        InputError: no study is of this group; the message lists the groups there are.
    """
    if tracking_uri:
        from analysis.sources import find_group

        members, groups = find_group(tracking_uri, check_group(group)), {}
    else:
        groups = {name: read_group(studies / name) for name in list_studies(studies)}
        members = [name for name, other in groups.items() if other == group]
    if not members:
        raise unknown("group", group, sorted(set(filter(None, groups.values()))) or ["none found"])
    return members


def source_folder(name: str, studies: Path, tracking_uri: str | None) -> Path:
    """Return a study's own folder.

    Args:
        name: of the study, or its folder.
        studies: where studies are.
        tracking_uri: the MLflow store that it is read from; None for its folder.

    Returns:
        The folder; of a study that is read from a tracking store, the one that it would have.

    Raises:
        InputError: there is no such study.
    """
    return studies / name if tracking_uri else find_study(name, studies)


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
