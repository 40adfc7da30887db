"""Brings MLflow up to date with a study's folder: its records, and the pictures and tables that were made of them.

The tracker does it, in a process of its own: only it knows what a store already has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lowrank.errors import InputError
from sweeps.records import TRACKING_PROGRESS_FILE, StudyRecord

URI_VARIABLE = "SWEEP_TRACKING_URI"  # read by the tracker: an argument with a password would show in `ps`


def check_store(folder: Path, uri: str | None) -> None:
    """Refuse an address that no records could ever go to.

    Args:
        folder: of the study.
        uri: the address; None for the study's own. A server that does not answer now is accepted.

    Raises:
        InputError: the address is not valid, or its password was not kept.
    """
    completed = subprocess.run(
        _command(folder, "--check"), env=_environment(uri), capture_output=True, text=True, check=False
    )
    if completed.returncode:
        raise InputError(completed.stderr.strip().removeprefix("error: "))


def push_study(folder: Path, uri: str | None = None) -> None:
    """Bring records and artifacts into a store.

    What is still missing at the end is printed on standard error, with the command that catches up.

    Args:
        folder: of the study.
        uri: the store; None for the one that has the study.
    """
    print("bringing it into MLflow ...", flush=True)
    subprocess.run(_command(folder), env=_environment(uri), check=False)


def push_if_tracked(study: StudyRecord, folder: Path) -> None:
    """Bring the pictures and tables of a study into the store that has its records.

    Nothing happens where no store has them, or while a driver runs, whose own tracker does it in the end.

    Args:
        study: the records.
        folder: of the study.
    """
    if study.closed and (folder / TRACKING_PROGRESS_FILE).is_file():
        push_study(folder)


def _command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sweeps.tracking", str(folder), *options]


def _environment(uri: str | None) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **({URI_VARIABLE: uri} if uri else {})}
