"""Arrays and bytes on disk that the processes of a machine share: the first one makes them, the others map them.

A file is named by a hash of what it was made from, so it is never out of date. It ends in a checksum. Files are removed
by age once they take too much room; a process that has one mapped keeps it. The folder belongs to the user. It lies
beside the system's temporary files, or where the environment variable LOWRANK_IMAGE_CACHE says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.data.reading_progress import READING
from lowrank.utils import TEMPORARY_SUFFIX, atomic_write, hold_lock

CACHE_VARIABLE = "LOWRANK_IMAGE_CACHE"
MAX_BYTES = 20_000_000_000
MAX_SHARE = 0.5  # of what is free on the disk
_LOCKS = 16  # files; processes that make different files seldom wait for each other
_CHECKSUM_BYTES = 4
_CHECKED_AT_ONCE = 2**24
_TOUCH_SECONDS = 1.0  # at least, between two signs that a file is being made


def cache_folder() -> Path | None:
    """Return the folder of the cache.

    Returns:
        The folder; None where there can be none that only this user can write.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    path = Path(chosen).expanduser() if chosen else Path(tempfile.gettempdir()) / f"decoded-images-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True, parents=bool(chosen))
        status = path.lstat()
    except OSError:
        return None
    private = path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return path if private else None


def room(folder: Path) -> int:
    """Return how many bytes the cache may take in all.

    Args:
        folder: of the cache.

    Returns:
        At most MAX_BYTES, and at most MAX_SHARE of what would be free without the cache.
    """
    used = sum(size for _, size, _ in _files(folder))
    return min(MAX_BYTES, int(MAX_SHARE * (shutil.disk_usage(folder).free + used)))


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """List the files of the cache, the one that was longest not used first: time, bytes, path."""
    files = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("lock-") and not entry.name.endswith(TEMPORARY_SUFFIX):
                with suppress(OSError):  # removed in the meantime
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime, status.st_size, Path(entry.path)))
    return sorted(files)


def make_room(folder: Path, needed: int) -> bool:
    """Remove the files that were longest not used, until there is room for another one.

    Args:
        folder: of the cache.
        needed: bytes.

    Returns:
        Whether there is room now; where the file is larger than the whole cache may be, nothing is removed.
    """
    limit = room(folder)
    if needed > limit:
        return False
    files = _files(folder)
    total = needed + sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            break
        with suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size
    return total <= limit


def mark_used(path: Path) -> None:
    """Note that a file is in use now, so that others are removed before it."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def making(folder: Path, name: str) -> Iterator[bool]:
    """Make a file alone: other processes that need it wait, and find it made.

    Args:
        folder: of the cache.
        name: of the file.

    Yields:
        Whether they wait; on a file system without locks each makes it.
    """
    lock = folder / f"lock-{zlib.crc32(name.encode()) % _LOCKS:x}"
    with ExitStack() as stack:
        is_alone = False
        with suppress(OSError):
            stack.enter_context(hold_lock(lock, cancelled=_CountOtherProcess(lock)))
            is_alone = True
        with READING.told_to(_TouchLock(lock)):
            yield is_alone


class _TouchLock:
    """Touches a lock's file as the process that holds it gets on, but not at every image."""

    def __init__(self, path: Path):
        self._path, self._touched = path, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._touched >= _TOUCH_SECONDS:
            self._touched = time.monotonic()
            mark_used(self._path)


class _CountOtherProcess:
    """Counts the progress of the process that holds a lock as that of this one, which waits; never ends the wait."""

    def __init__(self, path: Path):
        self._path, self._changed = path, 0

    def __call__(self) -> bool:
        with suppress(OSError):
            changed = self._path.stat().st_mtime_ns
            if changed != self._changed:
                self._changed = changed
                READING.step()
        return False


def load_or_make(
    sha: Any, make: Callable[[], NDArray[Any]], make_beside_others: Callable[[], NDArray[Any]] | None = None
) -> NDArray[Any]:
    """Load an array from the file of an earlier process, or make it and write the file.

    A file that is damaged is replaced. Where the disk has no room no file is written. Writing to the result changes no
    file.

    Args:
        sha: a hash object over everything that the result depends on.
        make: makes the array, while other processes that need it wait.
        make_beside_others: makes it where other processes may do the same at once; None for `make`.

    Returns:
        What `make` returns.
    """
    folder = cache_folder()
    if folder is None:
        return (make_beside_others or make)()
    path = folder / f"{sha.hexdigest()[:32]}.npy"
    if (cached := _load(path)) is not None:
        return cached
    with making(folder, path.name) as is_alone:
        if (cached := _load(path)) is not None:  # another process has made it meanwhile
            return cached
        array = make() if is_alone else (make_beside_others or make)()
        if not _write(path, array):
            return array
    cached = _load(path)
    return array if cached is None else cached


def _load(path: Path) -> NDArray[Any] | None:
    """Map a file into memory; None where it is missing or damaged."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
            expected = file.read()
        is_complete = path.stat().st_size == array.offset + array.nbytes + _CHECKSUM_BYTES
    except (OSError, ValueError, EOFError, AttributeError):
        return None
    if not is_complete or _checksum(array) != expected:
        return None
    mark_used(path)
    return array


def _checksum(array: NDArray[Any]) -> bytes:
    value, flat = 0, array.reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), _CHECKED_AT_ONCE):
        value = zlib.crc32(flat[start : start + _CHECKED_AT_ONCE], value)
        READING.step()
    return value.to_bytes(_CHECKSUM_BYTES, "little")


def _write(path: Path, array: NDArray[Any]) -> bool:
    """Write a file; whether there was room and the disk took it."""
    array = np.ascontiguousarray(array)
    if not make_room(path.parent, array.nbytes):
        return False
    try:
        with atomic_write(path) as file:
            np.save(file, array, allow_pickle=False)
            file.write(_checksum(array))
    except OSError:
        return False
    return True
