"""Carries a study's journal into MLflow and the Arrow tables, in a process of its own.

    python -m sweeps.tracking STUDY_DIR                  catch up once (exit code 0: all carried, 1: MLflow is behind)
    python -m sweeps.tracking STUDY_DIR --follow         go on until the study is closed
    python -m sweeps.tracking STUDY_DIR --again          carry everything once more, also what MLflow has refused

The journal is the truth and MLflow a copy: after any kill or outage the journal is read again and the copy completed.
What MLflow has accepted, and what it refused for good, is noted in `tracking.json`; losing that file costs time,
never a record.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank.errors import InputError
from lowrank.utils.cli import OneLineParser
from lowrank.utils.text import HIDDEN, redact
from sweeps.records.events import Event
from sweeps.records.journal import JournalReader
from sweeps.records.model import StudyRecord, apply_event, intern_names
from sweeps.records.names import JOURNAL_FILE, LOG_FILE, MACHINE_METRICS, PROGRESS_FILE
from sweeps.records.tables import write_tables
from sweeps.tracking.mlflow_runs import Entry, MlflowStudy
from sweeps.tracking.mlflow_store import milliseconds, one_line, outages, quiet_mlflow
from sweeps.tracking.process import URI_VARIABLE, behind_message, last_tracking_uri, read_progress
from sweeps.tracking.uri import check_tracking_uri

POLL_SECONDS = 0.5
TABLE_SECONDS = 5.0  # between two writings of the tables while the study runs
CHUNK = 500  # events after which the progress is noted
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two attempts at a store that is away
LOCK_SECONDS = 5.0
TIMINGS = MACHINE_METRICS  # differ when an epoch is trained again

Told = Callable[[int, int], None]  # how many records the store has taken, and of how many

log = logging.getLogger("sweeps.tracking.follower")


class Follower:
    """Reads one journal and brings MLflow and the tables up to it; `step` may be called again and again."""

    def __init__(self, study_dir: Path, uri: str, *, again: bool = False, told: Told = lambda carried, known: None):
        self.study_dir, self.uri, self._told = study_dir, uri, told
        self.study = StudyRecord()
        self.entries: list[Entry] = []
        self.carried = 0  # entries that the store has accepted
        self.closed_at = 0  # journal offset after the newest CLOSED
        self.error = ""  # why the store is behind, one line
        self.store: MlflowStudy | None = None
        self._reader = JournalReader(study_dir / JOURNAL_FILE)
        self._key = ""
        self._wait, self._next_try = FIRST_WAIT, 0.0
        self._tables_due, self._next_tables = True, 0.0
        self._progress = {} if again else read_progress(study_dir)

    def read(self) -> None:
        """Take in what the journal has gained; raises ValueError for a damaged line, OSError if it is gone."""
        first = not self.entries
        for event in self._reader.read():
            self.entries.append(self._entry(event))
            apply_event(self.study, event)
            if event["event"] == Event.CLOSED:
                self.closed_at = self._reader.offset
            if not self._key and event["event"] == Event.STUDY:
                self._key = f"{event['name']} {milliseconds(event['time'])}"
            self._tables_due = True
        if first and self.entries:
            self.carried = self._already_carried()

    def write_tables(self, now: bool = False) -> None:
        """Write results.parquet and epochs.parquet, whole or not at all; at most every few seconds unless `now`."""
        started = time.monotonic()
        if not self._tables_due or (started < self._next_tables and not now):
            return
        write_tables(self.study, self.study_dir)
        ended = time.monotonic()
        self._tables_due, self._next_tables = False, ended + max(TABLE_SECONDS, 10 * (ended - started))

    def carry(self, now: bool = False) -> bool:
        """Bring MLflow up to what was read; True when nothing is left. A store that is away is left alone for a while,
        longer each time, unless `now`."""
        if self.store is not None and self.carried == len(self.entries):
            return True
        if not self.study.header or (time.monotonic() < self._next_try and not now):
            return False
        try:
            self._carry()
        except outages() as error:
            self._store_is_away(error)
            return False
        self._wait, self._next_try, self.error = FIRST_WAIT, 0.0, ""
        return True

    def finish(self) -> str | None:
        """Close the study's parent run if the study is closed; None when all is stored, else one line that says what is
        not. Call it when nothing more will come."""
        self.write_tables(now=True)
        if not self.carry(now=True):
            return behind_message(self.study_dir, self.uri, self.error)
        assert self.store is not None
        try:
            self.store.close(self.entries[-1].time)
        except outages() as error:
            self._store_is_away(error)
            return behind_message(self.study_dir, self.uri, self.error)
        left = self.store.missing_artifacts
        self._note(f"not stored: {', '.join(left)[:150]} {self.store.artifact_error}".strip() if left else "")
        if left or self.store.refused:
            return behind_message(self.study_dir, self.uri, self.error)
        return None

    def abandon(self) -> None:
        """Mark what runs as killed: the driver is gone and never closed the study."""
        if self.store is not None and self.entries and not self.study.closed:
            try:
                self.store.abandon(self.entries[-1].time)
            except outages() as error:
                self._store_is_away(error)

    def _entry(self, event: Mapping[str, Any]) -> Entry:
        kind, trial_id = Event(event["event"]), event.get("trial")
        trial = self.study.trials.get(trial_id) if trial_id else None
        epoch, metrics = 0, {}
        if kind is Event.EPOCH:
            epoch, metrics = int(event["epoch"]), intern_names(event["metrics"])
            before = trial.epochs.get(epoch) if trial else None
            if before is not None and _outcome(before) == _outcome(metrics):
                metrics = {}  # trained again from a checkpoint, to the same end: one record is enough
        elif kind is Event.TESTED:
            epoch, metrics = (trial.last_epoch if trial else 0), {"test_error": event["test_error"]}
        return Entry(self._reader.offset, kind, event["time"], trial_id, epoch, metrics)

    def _already_carried(self) -> int:
        """How many entries the store has by `tracking.json`; 0 if that tells of another store, study or journal."""
        offset = self._progress.get("offset", 0)
        if self._progress.get("uri") != redact(self.uri) or self._progress.get("key") != self._key:
            return 0
        ends = [entry.offset for entry in self.entries]
        return ends.index(offset) + 1 if offset in ends else 0

    def _carry(self) -> None:
        if self.store is None:
            refused, again = (self._progress.get("refused"), False) if self.carried else ({}, True)
            self.store = MlflowStudy(self.uri, self.study_dir, self.study, self._key, refused, again)
            if self._has_lost_runs(self.store):
                self.carried = 0
        while self.carried < len(self.entries):
            chunk = self.entries[self.carried : self.carried + CHUNK]
            self.store.carry(chunk)
            self.carried += len(chunk)
            self._told(self.carried, len(self.entries))
            self._note("")

    def _has_lost_runs(self, store: MlflowStudy) -> bool:
        """Somebody may have deleted the database or some runs: then all is carried again."""
        begun = (Event.ATTEMPT, Event.EPOCH, Event.FINISHED)
        known = {entry.trial for entry in self.entries[: self.carried] if entry.event in begun}
        return store.parent != self._progress.get("parent") or not known <= store.runs.keys()

    def _store_is_away(self, error: Exception) -> None:
        self.store = None  # what a broken call did is unknown: the next attempt looks at what is there
        self._next_try = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        why = self._why(error)
        if why != self.error:
            log.warning("MLflow cannot take records: %s", why)
        self._note(why)

    def _why(self, error: BaseException) -> str:
        """One line without the password that MLflow's own text may show."""
        from requests.exceptions import ConnectionError, Timeout

        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, ConnectionError | Timeout):
                return f"no answer from {redact(self.uri)}"
            chain = chain.__cause__ or chain.__context__
        return one_line(error).replace(self.uri, redact(self.uri))

    def _note(self, error: str) -> None:
        self.error = error
        self._progress = {
            "uri": redact(self.uri),
            "key": self._key,
            "parent": self.store.parent if self.store else self._progress.get("parent"),
            "experiment": self.store.experiment if self.store else self._progress.get("experiment"),
            "offset": self.entries[self.carried - 1].offset if self.carried else 0,
            "refused": self.store.refused if self.store else self._progress.get("refused", {}),
            "error": error,
        }
        _replace(self.study_dir / PROGRESS_FILE, json.dumps(self._progress).encode())


def _outcome(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMINGS and name != "time"}


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def follow(follower: Follower, stop: threading.Event, since: int, parent: int) -> str | None:
    """Follow the journal until a CLOSED beyond byte `since` is carried, `parent` is gone, or `stop` is set.

    Returns None when MLflow has everything, else one line.
    """
    journal = follower.study_dir / JOURNAL_FILE
    while True:
        last = stop.is_set() or os.getppid() != parent
        if journal.exists():
            closed = _follow_step(follower, since, last)
            if last and not closed:
                follower.abandon()
            if last or (closed and follower.carried == len(follower.entries)):
                return follower.finish() if follower.entries else None
        elif last:
            return None
        stop.wait(POLL_SECONDS)


def _follow_step(follower: Follower, since: int, last: bool) -> bool:
    """One round; True when the study is closed. A full disk must not end the process: the next round may do better."""
    try:
        follower.read()
        closed = follower.study.closed is not None and follower.closed_at > since
        follower.write_tables(now=closed or last)
        follower.carry(now=last)
    except OSError as error:
        log.warning("%s", one_line(error))
        return False
    return closed


def catch_up(follower: Follower) -> str | None:
    """Carry all that the journal holds now. Returns None when MLflow has everything, else one line."""
    follower.read()
    if not follower.study.header:
        raise InputError(f"a study's journal must begin with a study event, but {follower.study_dir} has none yet")
    follower.write_tables(now=True)
    return follower.finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 when all is carried, 1 when MLflow is behind, 2 when the request makes no sense."""
    arguments = _parser().parse_args(argv)
    study_dir = arguments.study_dir
    uri = arguments.tracking_uri or os.environ.get(URI_VARIABLE) or last_tracking_uri(study_dir)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if arguments.parent is not None:  # Ctrl-C is the driver's; this process still has its records to bring in
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif arguments.follow:
        signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        if arguments.check:
            _check_address(uri)
            return 0
        if not arguments.follow and not (study_dir / JOURNAL_FILE).exists():
            raise InputError(f"a study folder must hold {JOURNAL_FILE}, but {study_dir} does not")
        _log_to(study_dir / LOG_FILE)
        return _run(arguments, uri, stop)
    except ValueError as error:  # InputError, or a damaged journal
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, most likely
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, uri: str, stop: threading.Event) -> int:
    quiet_mlflow()
    with (arguments.study_dir / "tracking.lock").open("w") as lock:
        wait = None if arguments.follow else LOCK_SECONDS
        if not _lock(lock, wait, stop):
            print("another process is carrying this study into MLflow already", file=sys.stderr)
            return 1
        if arguments.follow:
            follower = Follower(arguments.study_dir, uri, again=arguments.again)
            message = follow(follower, stop, arguments.since, arguments.parent or os.getppid())
        else:
            _check_address(uri)
            with _bar() as told:
                follower = Follower(arguments.study_dir, uri, again=arguments.again, told=told)
                message = catch_up(follower)
    if message:
        print(message, file=sys.stderr)
        return 1
    if not arguments.follow:
        print(f"{len(follower.entries):,} records are in {redact(uri)}")
    return 0


@contextmanager
def _bar() -> Iterator[Told]:
    """Shows on a terminal how many records the store has taken."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("records into MLflow"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda carried, known: bar.update(task, completed=carried, total=known)


def _check_address(uri: str) -> None:
    """A mistyped address is an error; a server that is away is not, for the tables are written all the same."""
    if HIDDEN in uri or not uri.startswith(("http://", "https://", "postgresql", "mysql", "mssql")):
        check_tracking_uri(uri)


def _lock(file: IO[str], seconds: float | None, stop: threading.Event) -> bool:
    """Wait for the study's lock, so that two trackers never make the same run twice; the kernel frees it on a kill."""
    deadline = time.monotonic() + (seconds if seconds is not None else float("inf"))
    while not stop.is_set():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            stop.wait(POLL_SECONDS / 5)
    return False


def _log_to(path: Path) -> None:
    """Send warnings of this process, MLflow's included, to a file, and nothing to the screen."""
    logging.basicConfig(filename=path, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(True)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m sweeps.tracking", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study_dir", type=Path, help="folder of the study, with its journal")
    parser.add_argument("--tracking-uri", help="MLflow store (default: the study's own)")
    parser.add_argument("--follow", action="store_true", help="go on until the study is closed")
    parser.add_argument("--again", action="store_true", help="carry everything once more, also what was refused before")
    parser.add_argument("--check", action="store_true", help="carry nothing; say whether the address can be one")
    parser.add_argument("--since", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser
