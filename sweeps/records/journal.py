"""The journal: an append-only file of JSON lines that survives a kill at any byte and shows any damage.

Each line carries the version of the records, its own number and a checksum of all that stands before the checksum:
`..., "record_version": 1, "line": 17, "crc32": "9d2f31aa"}`. So a changed digit, a lost line and a line that is there
twice are noticed. Lines of older versions have none of the three and are read as they are. Whoever reads events gets
them without these fields.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shlex
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lowrank.errors import InputError, LowrankError
from lowrank.utils import LockedError, format_counted, hold_lock, nearest_existing
from sweeps.records.events import Event, EventFields
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE
from sweeps.utils import Clock

SYNC_SECONDS = 1.0  # of epochs that a power cut may lose; starts and ends of trials are synced at once
LOW_BYTES = 10**9  # a disk with less may be full for a checkpoint
PROBE_BYTES = 2**20
_NAMED_FILE = re.compile(
    r"(?:No space left on device|[Dd]isk quota exceeded): ['\"]([^'\"]+)['\"]"
)  # as OSError shows it
RECORD_VERSION = 1  # of the lines that this code writes, and the newest that it reads
VERSION_FIELD, NUMBER_FIELD, CHECKSUM_FIELD = "record_version", "line", "crc32"
_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"}\n$')
_BLOCK = 2**16  # bytes that are read at once from the end of a file


class FullDiskError(OSError):
    """The disk has no room for the next record; the records before it are whole.

    Args:
        path: of the journal; its folder becomes the attribute `study`.
    """

    def __init__(self, path: Path):
        super().__init__(errno.ENOSPC, f"{path}: the disk is full, the last record was not written")
        self.study = path.parent

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
    texts = (os.strerror(errno.ENOSPC), "the disk is full", os.strerror(errno.EDQUOT))
    return any(text.lower() in str(error).lower() for text in texts)


def is_study_disk_full(error: object, folder: Path) -> bool:
    """Tell whether an error was caused by a full disk, and that disk is the study's.

    The temporary folder, a cache or the disk of another machine may be full too. That is a fault of the trial that
    needed it, and no reason to end the study.

    Args:
        error: an exception, or its text.
        folder: the study's, or one above it.

    Returns:
        Whether the file that the error names lies on the study's disk; where it names none, whether that disk has less
        than LOW_BYTES free or takes no file.
    """
    if not is_disk_full(error):
        return False
    nearest = nearest_existing(folder)
    named = getattr(error, "filename", None) or next(iter(_NAMED_FILE.findall(str(error))), None)
    if named is not None:
        owner = nearest_existing(Path(os.fsdecode(named)).absolute())
        return owner.stat().st_dev == nearest.stat().st_dev
    return shutil.disk_usage(nearest).free < LOW_BYTES or not _takes_a_file(nearest)


def _takes_a_file(folder: Path) -> bool:
    """Whether a file of PROBE_BYTES can be written: a quota shows in no other way."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


class StudyLostError(LowrankError):
    """Another driver has taken the study over.

    This one must stop its trials and write nothing more.
    """


class NewerRecordsError(InputError):
    """A line was written by a newer version of this project: it is whole, but not for this version to read."""


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
        self._number, last_time = _last_position(path)
        self._clock.advance_to(last_time)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._refusal: Exception | None = None

    def append(self, event: Event, *, sync: bool = False, **fields: Any) -> EventFields:
        """Write one event.

        Args:
            event: its kind.
            sync: whether to wait until it is on disk.
            **fields: its plain data.

        Returns:
            The event with its time, as readers get it.

        Raises:
            FullDiskError: the disk has no room for it.
            ValueError: a number is NaN or infinite.
            Exception: the one that `refuse` was given.
        """
        record = {"event": str(event), "time": self._clock.now(), **fields}
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            self._write(seal_line(record, self._number + 1))
            self._number += 1
            if sync or time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        return record

    def refuse(self, error: Exception) -> None:
        """Write nothing more, because the study is not this process's any longer, or the process is about to end.

        Args:
            error: what `append` and `raise_if_refused` raise from now on.
        """
        with self._lock:
            self._refusal = self._refusal or error

    def freeze(self) -> None:
        """Let every later `append` and `close` wait forever: only before `os._exit`, while other threads run on."""
        self._lock.acquire()

    def raise_if_refused(self) -> None:
        """Raise the error that `refuse` was given, if it was.

        Raises:
            Exception: that error.
        """
        if self._refusal is not None:
            raise self._refusal

    def _write(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size  # `tell` stands behind the end after a line that was taken back
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
        size = file.seek(0, os.SEEK_END)
        end = _line_start(file, size)
        if end != size:
            file.truncate(end)


def find_optuna_damage(path: Path) -> str:
    """Find a line of Optuna's journal that is no JSON object.

    Optuna takes some of them for the end of its file.

    Args:
        path: of the journal.

    Returns:
        What is wrong with the first such line, which is named by number and byte; "" for nothing, or if there is no
        journal. A last line that is not complete is no damage.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():
        return ""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n") and not isinstance(json.loads(line.decode()), dict):
                    return f"line {number} at byte {start} is no JSON object"
            except (ValueError, RecursionError) as error:
                return f"line {number} at byte {start} is damaged: {error}"
            start += len(line)
    return ""


def _line_start(file: BinaryIO, position: int) -> int:
    """The byte after the last line break before a position; 0 where there is none."""
    while position > 0:
        start = max(0, position - _BLOCK)
        file.seek(start)
        index = file.read(position - start).rfind(b"\n")
        if index >= 0:
            return start + index + 1
        position = start
    return 0


def _last_position(path: Path) -> tuple[int, float]:
    """The number and the time of the last line; damage, which `JournalReader` reports, gives the time 0."""
    if not path.exists():
        return 0, 0.0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = _line_start(file, end - 1)
        file.seek(start)
        number, last_time = None, 0.0
        try:
            event, number = parse_line(file.read(end - start))
            last_time = float(event["time"])
        except (KeyError, TypeError, ValueError):
            pass
        if number is None:  # an older line: count
            file.seek(0)
            number = sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
    return number, last_time if math.isfinite(last_time) else 0.0


def seal_line(record: Mapping[str, Any], number: int) -> bytes:
    """Write an event as a line with version, number and checksum.

    Args:
        record: the event.
        number: of the line in its journal, from 1.

    Returns:
        The line with its line break.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    fields = {**record, VERSION_FIELD: RECORD_VERSION, NUMBER_FIELD: number}
    content = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()[:-1]  # without the last brace
    return content + f',"{CHECKSUM_FIELD}":"{zlib.crc32(content):08x}"}}\n'.encode()


def parse_line(line: bytes) -> tuple[EventFields, int | None]:
    """Read a line and check it against its checksum.

    Args:
        line: with its line break.

    Returns:
        The event without version, number and checksum; and the line's number, None for a line of an older version,
        which has none of the three.

    Raises:
        NewerRecordsError: a newer version of this project wrote it.
        ValueError: the line is damaged.
    """
    event = json.loads(line.decode())  # given bytes, json would detect the encoding of every line
    if not isinstance(event, dict):
        raise ValueError(f"it must be a JSON object, but is {event!r}")
    if not event.keys() & {VERSION_FIELD, CHECKSUM_FIELD}:
        return event, None
    checksum = _CHECKSUM.search(line[-24:])
    if checksum is None or int(checksum[1], 16) != zlib.crc32(line[: -len(checksum[0])]):
        raise ValueError("its checksum does not fit its content")
    version, number = event.pop(VERSION_FIELD, None), event.pop(NUMBER_FIELD, None)
    del event[CHECKSUM_FIELD]
    if not isinstance(version, int) or not isinstance(number, int):
        raise ValueError(f"its `{VERSION_FIELD}` and `{NUMBER_FIELD}` must be whole numbers")
    if version > RECORD_VERSION:
        raise NewerRecordsError(
            f"a newer version of this project wrote it (records of version {version}; this one reads up to "
            f"{RECORD_VERSION})"
        )
    return event, number


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a study, so that no other process writes it within the block.

    Args:
        folder: of the study.

    Yields:
        Nothing.

    Raises:
        BusyError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / LOCK_FILE, timeout=0))
        except LockedError as error:
            raise BusyError(f"the study {folder.name!r} is being run by another process") from error
        yield


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
    with study_lock(folder), closing(Journal(folder / JOURNAL_FILE)) as journal:
        yield journal


@dataclass(frozen=True)
class JournalLine:
    """One complete line of a journal.

    Attributes:
        number: of the line, from 1; after damage as the line itself says.
        byte: at which it begins.
        event: without version, number and checksum; empty for a damaged line.
        damage: what is wrong with it, or with the lines before it; "" for nothing.
        usable: whether the event is whole and not there twice.
    """

    number: int
    byte: int
    event: Mapping[str, Any]
    damage: str = ""
    usable: bool = True


class JournalReader:
    """Reads complete events from where it last stopped.

    Args:
        path: of the journal.
        offset: the byte at which to begin; the attribute `offset` is where reading stopped.
    """

    def __init__(self, path: Path, offset: int = 0):
        self.path, self.offset = path, offset
        self._number: int | None = 0 if offset == 0 else None  # of the last line; unknown in the middle of a journal

    def scan(self) -> Iterator[JournalLine]:
        """Read the lines that are complete on disk and not yet read, damaged ones too.

        Yields:
            The lines, oldest first.

        Raises:
            NewerRecordsError: a newer version of this project wrote a line.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for content in file:
                if not content.endswith(b"\n"):
                    return
                line = self._check(content)
                self.offset += len(content)
                self._number = line.number
                yield line

    def _check(self, content: bytes) -> JournalLine:
        expected = None if self._number is None else self._number + 1
        try:
            event, number = parse_line(content)
        except NewerRecordsError as error:
            raise NewerRecordsError(f"{self.path}: line {expected or 0} at byte {self.offset}: {error}") from error
        except ValueError as error:
            return JournalLine(expected or 0, self.offset, {}, str(error), usable=False)
        if number is None or expected is None or number == expected:
            return JournalLine(number or expected or 0, self.offset, event)
        if number > expected:
            count = number - expected
            damage = f"{format_counted(count, 'line')} before it {'are' if count > 1 else 'is'} lost"
            return JournalLine(number, self.offset, event, damage)
        damage = f"it says that it is line {number}, which has been read: it is there twice or in the wrong place"
        return JournalLine(expected - 1, self.offset, event, damage, usable=False)


def damage_error(path: Path, number: int, byte: int, damage: str) -> InputError:
    """Return the error for a damaged line of a journal.

    Args:
        path: of the journal.
        number: of the line, from 1.
        byte: at which it begins.
        damage: what is wrong.

    Returns:
        An error whose message says what to do.
    """
    quoted = shlex.quote(str(path.parent))
    return InputError(
        f"{path}: line {number} at byte {byte} is damaged: {damage}; `python -m analysis check {quoted}` lists all "
        f"damage, `python -m analysis repair {quoted}` keeps what is whole"
    )
