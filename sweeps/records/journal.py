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
from lowrank.utils.locks import LockedError, hold_lock
from sweeps.records.events import Event
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE
from sweeps.utils.clock import Clock

SYNC_SECONDS = 1.0  # what a power cut may lose of running epochs; starts and ends of trials are synced at once


class FullDiskError(OSError):
    """The journal cannot be written; `study` is the name of its folder. What was written before is whole."""

    def __init__(self, path: Path):
        super().__init__(errno.ENOSPC, f"{path}: the disk is full, the last record was not kept")
        self.study = path.parent.name

    def __str__(self) -> str:
        return str(self.strerror)


def is_disk_full(error: object) -> bool:
    """Whether an error, of whatever library, came of a full disk: Ray hands on the text of one alone."""
    return any(text in str(error) for text in (os.strerror(errno.ENOSPC), "the disk is full", "disk quota exceeded"))


class BusyError(InputError):
    """Another process writes the study's journal."""


class Journal:
    """Appends events to a file; one writer at a time, any number of readers.

    Every event is handed to the operating system before `append` returns (so it survives a kill of the process);
    `sync=True` waits until the disk has it. A line torn by a kill is cut off when the journal is opened again.
    """

    def __init__(self, path: Path, clock: Clock | None = None):
        """`clock` gives the times of the events; it is made to go on from the last of them."""
        self.path, self._clock = path, clock or Clock()
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_torn_line(path)
        self._clock.advance_to(_last_time(path))
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._synced = time.monotonic()

    def append(self, event: Event, *, sync: bool = False, **fields: Any) -> dict[str, Any]:
        """Write one event and return it; raises FullDiskError, ValueError for a NaN."""
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
        if written != len(line):  # a full disk may take part of a line: leave no torn line in mid-file
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
    """Cut off what a kill or a full disk has left of a last line, if there is such a file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        keep = content.rfind(b"\n") + 1
        if keep != len(content):
            file.truncate(keep)


def _last_time(path: Path) -> float:
    """The time of the last event, 0 where there is none or where it is damaged, which its readers will say."""
    if not path.exists():
        return 0.0
    lines = path.read_bytes().rsplit(b"\n", 2)
    try:
        return float(json.loads(lines[-2])["time"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


@contextmanager
def locked_journal(folder: Path) -> Iterator[Journal]:
    """The study's journal, for one writer at a time; raises BusyError while another process has it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / LOCK_FILE, timeout=0))
        except LockedError as error:
            raise BusyError(f"the study {folder.name!r} is being run by another process") from error
        with closing(Journal(folder / JOURNAL_FILE)) as journal:
            yield journal


class JournalReader:
    """Reads complete lines from where it last stopped; `offset` may be kept and given again."""

    def __init__(self, path: Path, offset: int = 0):
        self.path, self.offset = path, offset

    def read(self) -> Iterator[Mapping[str, Any]]:
        """Yield the events that are complete on disk and not yet read; raises InputError for a damaged line."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    event = json.loads(line.decode())  # of bytes it would look for the encoding, line by line
                except ValueError as error:
                    raise InputError(f"{self.path}: the line at byte {self.offset} is damaged: {error}") from error
                self.offset += len(line)
                yield event


def read_journal(path: Path) -> Iterator[Mapping[str, Any]]:
    """All complete events of a journal."""
    return JournalReader(path).read()
