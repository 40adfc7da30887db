"""Sends a study's records, pictures and tables to an MLflow store.

The command `python -m sweeps.tracking` does the work in a process of its own: it sends only what the store lacks.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import module_command, module_environment
from sweeps.records import TRACKING_PROGRESS_FILE, StudyRecord

URI_VARIABLE = "SWEEP_TRACKING_URI"  # read by the tracker: an argument with a password would show in `ps`


def check_store(folder: Path, uri: str | None) -> None:
    """Check that an address is valid; a server that does not answer now is accepted.

    Args:
        folder: the study's folder.
        uri: the store's address; None for the store that has the study's records.

    Raises:
        InputError: the address is not valid, or its password is hidden.
    """
    completed = subprocess.run(
        _command(folder, "--check"), env=_environment(uri), capture_output=True, text=True, check=False
    )
    if completed.returncode:
        raise InputError(completed.stderr.strip().removeprefix("error: "))


def push_study(folder: Path, uri: str | None = None) -> None:
    """Send the records and artifacts that a store lacks.

    If some cannot be sent, a line on standard error says how many and with which command to try again.

    Args:
        folder: the study's folder.
        uri: the store's address; None for the store that has the study's records.
    """
    print("sending the study to MLflow ...", flush=True)
    subprocess.run(_command(folder), env=_environment(uri), check=False)


def push_if_tracked(study: StudyRecord, folder: Path) -> None:
    """Send a study's pictures and tables to the store that has its records.

    Nothing is sent if no store has records of the study, or if the study is not closed: a driver may then be running,
    and its tracker sends them at the end.

    Args:
        study: the records.
        folder: the study's folder.
    """
    if study.closed and (folder / TRACKING_PROGRESS_FILE).is_file():
        push_study(folder)


def _command(folder: Path, *options: str) -> list[str]:
    return module_command("sweeps.tracking", folder, *options)


def _environment(uri: str | None) -> dict[str, str]:
    """Return the environment of the process: it can import this checkout, and has the address if there is one."""
    return module_environment(**({URI_VARIABLE: uri} if uri else {}))
