"""What the driver needs of tracking: a check of the store's address, and the process that carries the journal there.

The driver never waits for MLflow: it appends to the journal, and only at the end gives the other process some time.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from lowrank.errors import InputError
from sweeps.records.names import JOURNAL_FILE, LOG_FILE, MLFLOW_FILE, PROGRESS_FILE, SPACE_FILE

URI_VARIABLE = "SWEEP_TRACKING_URI"  # hands an address, with its password, to the process without showing it in `ps`
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CHOICES = "sqlite:///FILE, http://HOST:PORT, https://HOST, postgresql://, mysql:// or mssql://"
HIDDEN = "***"  # stands for a password
ANSWER_SECONDS = 3.0
TERMINATE_SECONDS = 3.0


def default_tracking_uri(study_dir: Path) -> str:
    """The SQLite store inside the study's own folder."""
    return f"sqlite:///{(study_dir / MLFLOW_FILE).resolve()}"


def redact(uri: str) -> str:
    """The address without its password, for messages and files; anything else as it is."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", f":{HIDDEN}@")))


def check_tracking_uri(uri: str) -> None:
    """Refuse an address that cannot work, before a sweep starts; takes at most about 3 s.

    Raises:
        InputError: the scheme is unknown, the folder of a SQLite file is missing, or the server does not answer.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the tracking URI must be one of {CHOICES}, but {uri!r} is none: {error}") from error
    if parts.password == HIDDEN:
        raise InputError(f"the password of {uri} was not kept; name the address again with --tracking-uri")
    kind = parts.scheme.partition("+")[0]
    if kind == "sqlite":
        _check_file(uri)
    elif kind in ("http", "https"):
        _check_server(uri)
    elif kind in PORTS:
        _check_port(uri, parts.hostname or "localhost", port or PORTS[kind])
    else:
        raise InputError(f"the tracking URI must be one of {CHOICES}, but got {uri!r}")


def _check_file(uri: str) -> None:
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    if path == uri or not path:
        raise InputError(f"a SQLite tracking URI must read sqlite:///FILE (four slashes if absolute), but got {uri!r}")
    folder = Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"the tracking URI must name a file in a folder that can be written, but got {uri!r}")


def _check_server(uri: str) -> None:
    request = urllib.request.Request(redact_user(uri).rstrip("/") + "/health")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it answers, and wants the credentials that MLflow's own variables hold
            return
        why = f"it answered {error.code} to /health"
    except (OSError, ValueError) as error:
        why = f"no answer within {ANSWER_SECONDS:g} s ({getattr(error, 'reason', error)})"
    raise InputError(
        f"the tracking URI must name a running MLflow server, but {redact(uri)!r} does not work: {why}; "
        f"start it with 'mlflow server', or leave the URI out to record into the study's own folder"
    )


def redact_user(uri: str) -> str:
    """The address without user and password: urllib takes neither."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check_port(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"the tracking URI must name a running database, but {redact(uri)!r} does not answer: {error}"
        ) from error


def last_tracking_uri(study_dir: Path) -> str:
    """The store that the study is recorded into by its `space.yaml`; of a study without a question (a collated one) the
    store that took it last; else the study's own."""
    try:
        content = yaml.safe_load((study_dir / SPACE_FILE).read_text())
        named = content["options"]["tracking_uri"]
    except (OSError, yaml.YAMLError, LookupError, TypeError):  # collated, or one whose question is lost
        named = read_progress(study_dir).get("uri")
    return str(named) if named else default_tracking_uri(study_dir)


def catch_up_command(study_dir: Path, uri: str, *, again: bool = False) -> str:
    """The command that carries what is left, or all `again`; a password is shown as ***."""
    command = ["python", "-m", "sweeps.tracking", str(study_dir)]
    if uri != default_tracking_uri(study_dir):
        command += ["--tracking-uri", redact(uri)]
    if again:
        command += ["--again"]
    return shlex.join(command)


def read_progress(study_dir: Path) -> dict[str, Any]:
    """What the tracker wrote last; empty when there is nothing, or nothing whole."""
    try:
        progress = json.loads((study_dir / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}


def records_behind(study_dir: Path) -> int:
    """How many complete journal lines the store has not taken yet."""
    with (study_dir / JOURNAL_FILE).open("rb") as journal:
        journal.seek(read_progress(study_dir).get("offset", 0))
        return sum(line.endswith(b"\n") for line in journal)


class TrackingProcess:
    """The process that follows a study's journal. `start` it with the study, `finish` it after CLOSED was appended."""

    def __init__(self, process: subprocess.Popen[bytes], study_dir: Path, uri: str):
        self.process, self.study_dir, self.uri = process, study_dir, uri

    @classmethod
    def start(cls, study_dir: Path, uri: str | None = None) -> TrackingProcess:
        """Start following `study_dir`; `uri` is the store's address (default: SQLite in the study's folder).

        Returns at once. The process outlives a Ctrl-C, which goes to the driver, and ends by itself after the driver.
        """
        uri = uri or default_tracking_uri(study_dir)
        study_dir.mkdir(parents=True, exist_ok=True)
        journal = study_dir / JOURNAL_FILE
        since = journal.stat().st_size if journal.exists() else 0  # an older CLOSED is not the end of this sweep
        command = [sys.executable, "-m", "sweeps.tracking", str(study_dir), "--follow"]
        command += ["--since", str(since), "--parent", str(os.getpid())]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, URI_VARIABLE: uri}
        with (study_dir / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return cls(process, study_dir, uri)

    def finish(self, timeout: float = 30.0) -> str | None:
        """Wait up to `timeout` seconds for all records to be carried, and end the process.

        Returns None when they are, else one line that says how many are behind, why, and the command that catches up.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = self._end()
        return None if code == 0 else behind_message(self.study_dir, self.uri)

    def _end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def behind_message(study_dir: Path, uri: str, why: str = "") -> str:
    """One line: how many records MLflow lacks, why, and the command that catches up."""
    behind, progress = records_behind(study_dir), read_progress(study_dir)
    if progress.get("refused") and not behind:
        return refused_message(study_dir, uri, progress["refused"])
    why = why or progress.get("error") or f"see {study_dir / LOG_FILE}"
    what = f"{behind:,} record{'s' * (behind != 1)} behind" if behind else "incomplete"
    return f"MLflow is {what} ({why}); nothing is lost, catch up with: {catch_up_command(study_dir, uri)}"


def refused_message(study_dir: Path, uri: str, refused: dict[str, str]) -> str:
    """One line: how many records MLflow will not take as they are, the first with its reason, and how to ask again."""
    what, why = next(iter(refused.items()))
    many = f"{len(refused):,} records, the first" if len(refused) > 1 else "a record"
    return (
        f"MLflow has refused {many}: {what} ({why}); journal and tables have everything, ask MLflow again with: "
        f"{catch_up_command(study_dir, uri, again=True)}"
    )
