"""Carries a study's journal into MLflow and the Arrow tables.

The journal is the truth and MLflow a copy: after any kill or outage the journal is read again and the copy completed.
`tracking.json` says what MLflow has accepted, and what it has refused for good; losing that file costs time, never a
record.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowrank.errors import InputError
from lowrank.utils import first_line, redact, write_text
from sweeps.records import (
    JOURNAL_FILE,
    MACHINE_METRICS,
    TRACKING_PROGRESS_FILE,
    Event,
    JournalReader,
    StudyRecord,
    apply_event,
    damage_error,
    describe_damage,
    intern_names,
    mlflow_names as names,
    write_tables,
)
from sweeps.tracking.mlflow_registry import import_serving
from sweeps.tracking.mlflow_runs import Entry, MlflowStudy
from sweeps.tracking.mlflow_store import MESSAGE_LENGTH, outages
from sweeps.tracking.process import Progress, behind_message, read_progress

POLL_SECONDS = 0.5
TABLE_SECONDS = 5.0  # between two writings of the tables while the study runs
CHUNK = 500  # events after which the progress is written
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two attempts at a store that does not answer

ProgressCallback = Callable[[int, int], None]  # how many records the store has taken, and of how many

log = logging.getLogger("sweeps.tracking.follower")


class Follower:
    """Reads one journal and brings MLflow and the tables up to it.

    Every method may be called again and again.
    """

    def __init__(
        self, study_dir: Path, uri: str, *, again: bool = False,
        on_progress: ProgressCallback = lambda carried, total: None,
    ):  # fmt: skip
        """Open a journal; nothing is read yet.

        Args:
            study_dir: the study's folder.
            uri: the store's address.
            again: carry everything again, also what MLflow has refused.
            on_progress: called with how many records the store has taken, and of how many.
        """
        self.study_dir, self.uri, self._on_progress = study_dir, uri, on_progress
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
        self._progress: Progress = {} if again else read_progress(study_dir)

    def read(self) -> None:
        """Read the lines that the journal has gained.

        Raises:
            InputError: a line is damaged.
            OSError: the journal is gone.
        """
        first = not self.entries
        for line in self._reader.scan():
            event, damage = line.event, line.damage
            if not damage:
                try:
                    entry = self._entry(event)  # before the event is applied: the entry depends on what was there
                    apply_event(self.study, event)
                    self.entries.append(entry)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    damage = describe_damage(event, error)
            if damage:
                raise damage_error(self._reader.path, line.number, line.byte, damage)
            if event["event"] == Event.CLOSED:
                self.closed_at = self._reader.offset
            if not self._key and event["event"] == Event.STUDY:
                self._key = names.study_key(self.study.header)
            self._tables_due = True
        if first and self.entries:
            self.carried = self._already_carried()

    def write_tables(self, now: bool = False) -> None:
        """Write results.parquet and epochs.parquet, whole or not at all.

        Args:
            now: write them even if they were written a few seconds ago.

        Raises:
            OSError: the disk takes no more.
        """
        started = time.monotonic()
        if not self._tables_due or (started < self._next_tables and not now):
            return
        write_tables(self.study, self.study_dir)
        ended = time.monotonic()
        self._tables_due, self._next_tables = False, ended + max(TABLE_SECONDS, 10 * (ended - started))

    def carry(self, now: bool = False) -> bool:
        """Bring MLflow up to what was read.

        Args:
            now: try even if the store did not answer a moment ago; otherwise the waits grow.

        Returns:
            True when MLflow has everything.
        """
        if self.store is not None and self.carried == len(self.entries):
            return True
        if self.study.header.is_empty or (time.monotonic() < self._next_try and not now):
            return False
        try:
            self._carry()
        except outages() as error:
            self._store_failed(error)
            return False
        self._wait, self._next_try, self.error = FIRST_WAIT, 0.0, ""
        return True

    def finish(self) -> str | None:
        """Carry the rest and, if the study is closed, close its parent run.

        Call it when nothing more will come.

        Returns:
            None when all is stored, else one line that says what is not.
        """
        self.write_tables(now=True)
        if not self.carry(now=True):
            return behind_message(self.study_dir, self.uri, self.error)
        assert self.store is not None
        try:
            self.store.close(self.entries[-1].time)
        except outages() as error:
            self._store_failed(error)
            return behind_message(self.study_dir, self.uri, self.error)
        missing = self.store.missing_artifacts
        message = f"not stored: {', '.join(missing)[:150]} {self.store.artifact_error}".strip()
        self._write_progress(message if missing else "")
        if missing or self.store.refused:
            return behind_message(self.study_dir, self.uri, self.error)
        return None

    def abandon(self) -> None:
        """Mark runs without an end as killed.

        Call it when the driver has ended without closing the study.
        """
        if self.store is not None and self.entries and not self.study.closed:
            try:
                self.store.abandon(self.entries[-1].time)
            except outages() as error:
                self._store_failed(error)

    def _entry(self, event: Mapping[str, Any]) -> Entry:
        kind, trial_id = Event(event["event"]), event.get("trial")
        trial = self.study.trials.get(trial_id) if trial_id else None
        epoch, metrics = 0, {}
        if kind is Event.EPOCH:
            epoch, metrics = int(event["epoch"]), intern_names(event["metrics"])
            before = trial.epochs.get(epoch) if trial else None
            if before is not None and _without_timings(before) == _without_timings(metrics):
                metrics = {}  # trained again from a checkpoint, to the same values: one record is enough
        elif kind is Event.TESTED:
            epoch, metrics = (trial.last_epoch if trial else 0), {"test_error": event["test_error"]}
        return Entry(self._reader.offset, kind, event["time"], trial_id, epoch, metrics)

    def _already_carried(self) -> int:
        """How many entries the store has by `tracking.json`; 0 if that is of another store, study or journal."""
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
            self._on_progress(self.carried, len(self.entries))
            self._write_progress("")

    def _has_lost_runs(self, store: MlflowStudy) -> bool:
        """Whether somebody has deleted the database or some runs: then all is carried again."""
        kinds = (Event.ATTEMPT, Event.EPOCH, Event.FINISHED)
        carried_trials = {entry.trial for entry in self.entries[: self.carried] if entry.event in kinds}
        return store.parent != self._progress.get("parent") or not carried_trials <= store.runs.keys()

    def _store_failed(self, error: Exception) -> None:
        self.store = None  # what a broken call has done is unknown: the next attempt looks up what the store has
        self._next_try = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        reason = self._reason(error)
        if reason != self.error:
            log.warning("MLflow cannot take records: %s", reason)
        self._write_progress(reason)

    def _reason(self, error: BaseException) -> str:
        """One line, without the password that MLflow's own text may show."""
        from requests.exceptions import ConnectionError, Timeout

        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, ConnectionError | Timeout):
                return f"no answer from {redact(self.uri)}"
            chain = chain.__cause__ or chain.__context__
        return first_line(error, MESSAGE_LENGTH).replace(self.uri, redact(self.uri))

    def _write_progress(self, error: str) -> None:
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
        write_text(self.study_dir / TRACKING_PROGRESS_FILE, json.dumps(self._progress))


def _without_timings(metrics: Mapping[str, float]) -> dict[str, float]:
    """An epoch's metrics but those of the machine, which differ when it is trained again."""
    return {name: value for name, value in metrics.items() if name not in MACHINE_METRICS and name != "time"}


def follow(follower: Follower, stop: threading.Event, since: int, parent: int) -> str | None:
    """Follow the journal until the study is closed and carried.

    It ends too when the parent process has ended or a stop is asked for. Once a trial is completed, models will be
    stored at the end, and what that needs is imported while others train.

    Args:
        follower: of the journal.
        stop: set to end at once.
        since: a byte of the journal; a CLOSED before it belongs to an earlier run of the driver.
        parent: process id of the driver.

    Returns:
        None when MLflow has everything, else one line.
    """
    journal, imported = follower.study_dir / JOURNAL_FILE, False
    while True:
        last = stop.is_set() or os.getppid() != parent
        if journal.exists():
            closed = _follow_step(follower, since, last)
            if last and not closed:
                follower.abandon()
            if last or (closed and follower.carried == len(follower.entries)):
                return follower.finish() if follower.entries else None
            if not (closed or imported) and follower.study.has_completed:
                import_serving()
                imported = True
        elif last:
            return None
        stop.wait(POLL_SECONDS)


def _follow_step(follower: Follower, since: int, last: bool) -> bool:
    """One round; True when the study is closed. A full disk must not end the process: the next round may succeed."""
    try:
        follower.read()
        closed = follower.study.closed is not None and follower.closed_at > since
        follower.write_tables(now=closed or last)
        follower.carry(now=last)
    except OSError as error:
        log.warning("%s", first_line(error, MESSAGE_LENGTH))
        return False
    return closed


def catch_up(follower: Follower) -> str | None:
    """Carry all that the journal holds now.

    Args:
        follower: of the journal.

    Returns:
        None when MLflow has everything, else one line.

    Raises:
        InputError: the journal has no study event yet.
        ValueError: a line of the journal is damaged.
    """
    follower.read()
    if follower.study.header.is_empty:
        raise InputError(f"a study's journal must begin with a study event, but {follower.study_dir} has none yet")
    follower.write_tables(now=True)
    return follower.finish()
