"""What the commands of this room share: which study, read from where, and how bad input ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from analysis.load import STUDIES, find_study, load_study
from lowrank.errors import InputError
from sweeps.records import StudyRecord


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def add_source(parser: argparse.ArgumentParser) -> None:
    """--study, --studies and --tracking-uri."""
    parser.add_argument("--study", required=True, metavar="NAME", help="a study's name, or its folder")
    add_stores(parser)


def add_stores(parser: argparse.ArgumentParser) -> None:
    """Where studies are: --studies and --tracking-uri."""
    parser.add_argument("--studies", type=Path, default=STUDIES, metavar="DIR", help="where studies are (studies/)")
    parser.add_argument("--tracking-uri", metavar="URI", help="read the study from this MLflow store instead")


def load_source(arguments: argparse.Namespace) -> StudyRecord:
    """The study that was asked for; raises InputError that lists those there are."""
    return load_named(arguments.study, arguments)


def load_named(name: str, arguments: argparse.Namespace) -> StudyRecord:
    """A study by name or folder, or by name from the tracking store; raises InputError."""
    if arguments.tracking_uri:
        from analysis.mlflow_store import load_from_mlflow

        return load_from_mlflow(arguments.tracking_uri, name)
    return load_study(find_study(name, arguments.studies))


def source_folder(arguments: argparse.Namespace) -> Path:
    """The study's own folder; of a study that is read from a tracking store, the one that it would have."""
    if arguments.tracking_uri:
        return Path(arguments.studies) / arguments.study
    return find_study(arguments.study, arguments.studies)


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


def exit_code(run: Callable[[], int]) -> int:
    """Run a command; bad input is one line and exit code 2, a disk that takes no more one line and exit code 1."""
    try:
        return run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
