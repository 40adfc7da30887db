"""The process that carries a study's journal into MLflow, and what it has carried so far.

The driver never waits for MLflow: it appends to the journal, and only at the end gives the other process some time.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import TypedDict, cast

from lowrank.errors import InputError
from lowrank.utils import ExitCode, first_line, format_counted, module_command, module_environment, redact
from sweeps.records import JOURNAL_FILE, TRACKING_LOG_FILE, TRACKING_PROGRESS_FILE, read_space_file
from sweeps.tracking.uri import default_tracking_uri

URI_VARIABLE = "SWEEP_TRACKING_URI"  # hands an address, with its password, to the process without showing it in `ps`
TERMINATE_SECONDS = 3.0
CHECK_SECONDS = 30.0  # for the start of MLflow and a few calls of at most 10 s
REPORT_SECONDS = 5.0  # between two looks at what the process says
MAX_RESTARTS = 3  # of a process that something kills, such as the system for want of memory


def check_study_store(study_dir: Path, uri: str) -> list[str]:
    """Ask a store whether it will take a study's records.

    `sweeps.tracking.store_check` does it, in a process of its own.

    Args:
        study_dir: the study's folder.
        uri: the store's address.

    Returns:
        Lines for the user.

    Raises:
        InputError: the study's experiment was deleted, or the store refuses this user.
    """
    command = module_command("sweeps.tracking", study_dir, "--check")
    environment = module_environment(**{URI_VARIABLE: uri})
    try:
        check = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
            timeout=CHECK_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [f"{redact(uri)} has not answered within {CHECK_SECONDS:g} s; records wait in the journal"]
    if check.returncode == ExitCode.BAD_INPUT:
        raise InputError(check.stderr.strip().removeprefix("error: "))
    if check.returncode != ExitCode.DONE:
        reason = (check.stderr.strip().splitlines() or [f"exit code {check.returncode}"])[-1]
        return [f"whether {redact(uri)} takes records is not known: {reason}"]
    return check.stdout.splitlines()


class TrackingProcess:
    """The process that follows a study's journal.

    `start` it with the study, `finish` it after CLOSED was appended. It is started again when something kills it, for
    it also writes the study's tables.
    """

    def __init__(self, process: subprocess.Popen[bytes], study_dir: Path, uri: str, since: int = 0):
        """Hold a process that runs; see `start`.

        Args:
            process: the process.
            study_dir: the study's folder.
            uri: the store's address.
            since: bytes of the journal when the study began or was resumed.
        """
        self.process, self.study_dir, self.uri, self._since = process, study_dir, uri, since
        self._restarts = MAX_RESTARTS
        self._next_report, self._reported = 0.0, {""}
        self._before = self._progress_time()  # of what an earlier process has left

    def new_error(self) -> str | None:
        """Say, once for each reason, why the store takes no records; looks every `REPORT_SECONDS` at most.

        A process that was killed is started again, `MAX_RESTARTS` times at most.

        Returns:
            One line; None where there is nothing new to say.
        """
        now = time.monotonic()
        if now < self._next_report:
            return None
        self._next_report = now + REPORT_SECONDS
        if (line := self._restart_killed()) is not None:
            return line
        if self._progress_time() == self._before:
            return None
        error = str(read_progress(self.study_dir).get("error") or "")
        if error in self._reported:
            return None
        self._reported.add(error)
        return f"MLflow takes no records: {error}; the study goes on, and they wait in the journal"

    def _progress_time(self) -> int | None:
        try:
            return (self.study_dir / TRACKING_PROGRESS_FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @classmethod
    def start(cls, study_dir: Path, uri: str | None = None) -> TrackingProcess:
        """Start following a study's journal; returns at once.

        The process outlives a Ctrl-C, which goes to the driver, and ends by itself after the driver.

        Args:
            study_dir: the study's folder, made if it is missing.
            uri: the store's address; None for SQLite in the study's folder.

        Returns:
            The process.

        Raises:
            OSError: the folder cannot be written.
        """
        uri = uri or default_tracking_uri(study_dir)
        study_dir.mkdir(parents=True, exist_ok=True)
        journal = study_dir / JOURNAL_FILE
        since = journal.stat().st_size if journal.exists() else 0  # an older CLOSED is not the end of this run
        return cls(_start_process(study_dir, uri, since), study_dir, uri, since)

    def _restart_killed(self) -> str | None:
        """Start the process again if a signal has ended it; returns a line that says so, None if there is no news."""
        code = self.process.poll()
        if code is None or code >= 0 or self._restarts < 0:
            return None
        killed = "the process that writes tables and MLflow's records was killed"
        self._restarts -= 1
        if self._restarts < 0:
            return f"{killed} once more and is not started again; the records wait in the journal"
        try:
            self.process = _start_process(self.study_dir, self.uri, self._since)
        except OSError as error:  # what the system lacks, such as memory, may be there at the next look
            return f"{killed} and does not start again: {first_line(error)}"
        return f"{killed}; it is started again"

    def finish(self, timeout: float = 30.0) -> str | None:
        """Wait for all records to be carried, and end the process.

        Args:
            timeout: seconds to wait at most, also for a process that was started again.

        Returns:
            None when all are carried, else one line that says how many are behind, why, and the command that catches
            up.
        """
        end = time.monotonic() + timeout
        try:
            code = self.process.wait(timeout)
            while self._restart_killed() is not None:
                code = self.process.wait(max(0.0, end - time.monotonic()))
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


def _start_process(study_dir: Path, uri: str, since: int) -> subprocess.Popen[bytes]:
    command = module_command(
        "sweeps.tracking", study_dir, "--follow", "--since", since, "--parent", os.getpid()
    )  # fmt: skip
    environment = module_environment(**{URI_VARIABLE: uri})
    with (study_dir / TRACKING_LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def last_tracking_uri(study_dir: Path) -> str:
    """Return the address of the store that a study is recorded into.

    Args:
        study_dir: the study's folder.

    Returns:
        The address in its `space.yaml`; of a study without that file (a collated one) the store that took its records
        last; else the study's own.
    """
    try:
        uri = read_space_file(study_dir)[1].tracking_uri
    except (OSError, InputError):  # a collated study, or a damaged file
        uri = read_progress(study_dir).get("uri")
    return str(uri) if uri else default_tracking_uri(study_dir)


def catch_up_command(study_dir: Path, uri: str, *, again: bool = False) -> str:
    """Return the command that carries what MLflow lacks.

    Args:
        study_dir: the study's folder.
        uri: the store's address; a password is shown as `***`.
        again: carry everything again, also what MLflow has refused.

    Returns:
        The command line.
    """
    command = ["python", "-m", "sweeps.tracking", str(study_dir)]
    if uri != default_tracking_uri(study_dir):
        command += ["--tracking-uri", redact(uri)]
    if again:
        command += ["--again"]
    return shlex.join(command)


class Progress(TypedDict, total=False):
    """The content of `tracking.json`: which store takes the records, and how far it is.

    Attributes:
        uri: the store's address, without its password.
        key: of the study in the store.
        offset: bytes of the journal that the store has taken.
        experiment: id of the study's experiment.
        parent: id of the study's run.
        error: why the store lacks records; "" where it lacks none.
        refused: what the store will not take: name of the record -> reason.
    """

    uri: str
    key: str
    offset: int
    experiment: str | None
    parent: str | None
    error: str
    refused: dict[str, str]


def read_progress(study_dir: Path) -> Progress:
    """Read what the tracking process wrote last.

    Args:
        study_dir: the study's folder.

    Returns:
        The content of `tracking.json`; empty when there is none, or a damaged one.
    """
    try:
        progress = json.loads((study_dir / TRACKING_PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return cast(Progress, progress) if isinstance(progress, dict) else {}


def records_behind(study_dir: Path) -> int:
    """Count the complete journal lines that the store has not taken yet.

    Args:
        study_dir: the study's folder.

    Returns:
        The number of lines.

    Raises:
        OSError: there is no journal.
    """
    with (study_dir / JOURNAL_FILE).open("rb") as journal:
        journal.seek(read_progress(study_dir).get("offset", 0))
        return sum(line.endswith(b"\n") for line in journal)


def behind_message(study_dir: Path, uri: str, reason: str = "") -> str:
    """Say how many records MLflow lacks, why, and which command catches up.

    Args:
        study_dir: the study's folder.
        uri: the store's address.
        reason: why; empty for what `tracking.json` says.

    Returns:
        One line.
    """
    behind, progress = records_behind(study_dir), read_progress(study_dir)
    if progress.get("refused") and not behind:
        return _refused_message(study_dir, uri, progress["refused"])
    reason = reason or progress.get("error") or f"see {study_dir / TRACKING_LOG_FILE}"
    state = f"{format_counted(behind, 'record')} behind" if behind else "incomplete"
    return f"MLflow is {state} ({reason}); nothing is lost, catch up with: {catch_up_command(study_dir, uri)}"


def _refused_message(study_dir: Path, uri: str, refused: dict[str, str]) -> str:
    """One line: how many records MLflow will not take, the first with its reason, and how to try again."""
    record, reason = next(iter(refused.items()))
    count = f"{len(refused):,} records, the first" if len(refused) > 1 else "a record"
    return (
        f"MLflow has refused {count}: {record} ({reason}); journal and tables have everything, ask MLflow again with: "
        f"{catch_up_command(study_dir, uri, again=True)}"
    )
