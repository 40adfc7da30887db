"""The journal: an append-only file of JSON lines that survives a kill at any byte."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from lowrank.errors import InputError
from lowrank.utils import LockedError, hold_lock
from sweeps.records.events import Event
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE
from sweeps.utils import Clock

SYNC_SECONDS = 1.0  # of epochs that a power cut may lose; starts and ends of trials are synced at once


class FullDiskError(OSError):
    """The disk has no room for the next record; the records before it are whole.

    Args:
        path: of the journal; the name of its folder becomes the attribute `study`.
    """

    def __init__(self, path: Path):
        super().__init__(errno.ENOSPC, f"{path}: the disk is full, the last record was not written")
        self.study = path.parent.name

    def __str__(self) -> str:
        return str(self.strerror)


def is_disk_full(error: object) -> bool:
    """Tell whether an error of any library was caused by a full disk.

    Ray passes on only the text of some errors.

    Args:
        error: an exception, or its text.

    Returns:
        Whether its text names a full disk or an exceeded quota.
    """
    return any(text in str(error) for text in (os.strerror(errno.ENOSPC), "the disk is full", "disk quota exceeded"))


class BusyError(InputError):
    """Another process holds the study's journal."""


class Journal:
    """Appends events to a file; one writer at a time, any number of readers.

    Every event is handed to the operating system before `append` returns, so it survives a kill of the process.
    `sync=True` waits until it is on disk. A line torn by a kill is cut off when the journal is opened again.

    Args:
        path: the file, which is made with its folder where it is missing.
        clock: gives the times of the events; it is advanced to the time of the last one.
    """

    def __init__(self, path: Path, clock: Clock | None = None):
        self.path, self._clock = path, clock or Clock()
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_torn_line(path)
        self._clock.advance_to(_last_time(path))
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._synced = time.monotonic()

    def append(self, event: Event, *, sync: bool = False, **fields: Any) -> dict[str, Any]:
        """Write one event.

        Args:
            event: its kind.
            sync: whether to wait until it is on disk.
            **fields: its plain data.

        Returns:
            The event as written, with its time.

        Raises:
            FullDiskError: the disk has no room for it.
            ValueError: a number is NaN or infinite.
        """
        record = {"event": str(event), "time": self._clock.now(), **fields}
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._write(line)
            if sync or time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        return record

    def _write(self, line: bytes) -> None:
        start = self._file.tell()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise self._full(error) from error
        if written != len(line):  # a full disk may hold part of a line: leave no torn line in mid-file
            self._file.truncate(start)
            raise FullDiskError(self.path)

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._full(error) from error
        self._synced = time.monotonic()

    def _full(self, error: OSError) -> OSError:
        return FullDiskError(self.path) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error

    def close(self) -> None:
        """Sync and close."""
        with self._lock:
            try:
                self._sync()
            finally:
                self._file.close()


def truncate_torn_line(path: Path) -> None:
    """Cut off an incomplete last line, which a kill or a full disk leaves.

    Args:
        path: the file; nothing happens where it is missing.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            file.truncate(end)


def _last_time(path: Path) -> float:
    """The time of the last event; 0 where there is none, or where it is damaged, which `JournalReader` reports."""
    if not path.exists():
        return 0.0
    lines = path.read_bytes().rsplit(b"\n", 2)
    try:
        return float(json.loads(lines[-2])["time"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


@contextmanager
def locked_journal(folder: Path) -> Iterator[Journal]:
    """Open a study's journal for the one process that may write it.

    Args:
        folder: of the study.

    Yields:
        The journal, which is closed and unlocked when the block ends.

    Raises:
        BusyError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / LOCK_FILE, timeout=0))
        except LockedError as error:
            raise BusyError(f"the study {folder.name!r} is being run by another process") from error
        with closing(Journal(folder / JOURNAL_FILE)) as journal:
            yield journal


class JournalReader:
    """Reads complete events from where it last stopped.

    Args:
        path: of the journal.
        offset: the byte at which to begin; the attribute `offset` is where reading stopped.
    """

    def __init__(self, path: Path, offset: int = 0):
        self.path, self.offset = path, offset

    def read(self) -> Iterator[Mapping[str, Any]]:
        """Read the events that are complete on disk and not yet read.

        Yields:
            The events, oldest first.

        Raises:
            InputError: a line is damaged.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    event = json.loads(line.decode())  # given bytes, json would detect the encoding of every line
                except ValueError as error:
                    raise InputError(f"{self.path}: the line at byte {self.offset} is damaged: {error}") from error
                self.offset += len(line)
                yield event


def read_journal(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read all complete events of a journal.

    Args:
        path: of the journal.

    Returns:
        The events, oldest first.

    Raises:
        InputError: a line is damaged.
    """
    return JournalReader(path).read()
