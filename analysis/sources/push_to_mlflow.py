"""Brings MLflow up to a study's folder: its records, and the pictures and tables that were made of them.

The tracker does it, in a process of its own: only it knows what a store has taken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lowrank.errors import InputError
from sweeps.records.model import StudyRecord
from sweeps.records.names import PROGRESS_FILE

URI_VARIABLE = "SWEEP_TRACKING_URI"  # as the tracker reads it: an address with its password does not show in `ps`


def check_store(folder: Path, uri: str | None) -> None:
    """Refuse an address that no records could ever go to (None: the study's own); a server that is away is none.

    Raises:
        InputError: the address is none, or its password was not kept.
    """
    done = subprocess.run(
        _command(folder, "--check"), env=_environment(uri), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(done.stderr.strip().removeprefix("error: "))


def push_study(folder: Path, uri: str | None = None) -> None:
    """Bring records and artifacts into the store at `uri` (None: the one that has the study); what is missing in the
    end is said on standard error, with the command that catches up."""
    print("bringing it into MLflow ...", flush=True)
    subprocess.run(_command(folder), env=_environment(uri), check=False)


def push_if_tracked(study: StudyRecord, folder: Path) -> None:
    """Bring what was made of a study's records into the store that has them. Nothing where none has; while a driver
    is at work its own tracker does it in the end."""
    if study.closed and (folder / PROGRESS_FILE).is_file():
        push_study(folder)


def _command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sweeps.tracking", str(folder), *options]


def _environment(uri: str | None) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **({URI_VARIABLE: uri} if uri else {})}
