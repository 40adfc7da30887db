"""Bring a study's folder up to what is stored, without losing anything that the folder alone has."""

from __future__ import annotations

import enum
import time
import zlib
from pathlib import Path, PurePosixPath

from lowrank.errors import InputError
from lowrank.utils import first_line, format_counted, free_name, write_bytes
from sweeps.records import JOURNAL_FILE, NOTES_FILE, SPACE_FILE, hold_study_folder
from sweeps.storage.claims import CLAIMS_FOLDER, DRIVER_FILE, stored_sizes
from sweeps.storage.parts import PARTS_SUFFIX, PartsError
from sweeps.storage.remote import GROWING_FILES, PROBE_PREFIX, STORAGE_ERRORS, Storage, list_stored_studies
from sweeps.storage.trial_files import EndedTrials
from sweeps.utils import check_plain_name

SUPERSEDED_SUFFIX = ".superseded"  # of a local file that was newer than its stored copy, of another driver's history


def fetch_study(uri: str, name: str, root: Path) -> Path:
    """Bring the folder of a stored study up to date, holding its lock.

    Args:
        uri: as given to `--storage`.
        name: the study's. A study that is not stored yet, but has a folder, stays as it is.
        root: the folder of studies.

    Returns:
        The study's folder.

    Raises:
        InputError: there is no such study (the text lists those there are), folder and storage hold two different
            histories of it, or what is stored is not whole.
        BusyError: a driver of this machine runs the study.
    """
    folder = stored_study_folder(uri, name, root)
    with hold_study_folder(folder):
        update_folder(Storage(uri, name), folder)
    return folder


def stored_study_folder(uri: str, name: str, root: Path) -> Path:
    """Return the folder of a study that is stored, or that this machine has.

    Args:
        uri: as given to `--storage`.
        name: the study's.
        root: the folder of studies.

    Returns:
        The study's folder, which may be missing.

    Raises:
        InputError: there is no such study; the text lists those there are.
    """
    check_plain_name(name, "the name of a study")
    studies = list_stored_studies(uri)
    if name not in studies and not (root / name / SPACE_FILE).is_file():
        raise InputError(f"no study {name!r} in {uri}; choose from: {', '.join(studies) or 'none yet'}")
    return root / name


def update_folder(storage: Storage, folder: Path) -> dict[str, int]:
    """Bring a study's folder up to what is stored; the caller holds the study's lock.

    Where the folder has all that is stored of the journal, only files that it lacks are fetched: its driver was killed
    on this machine. Where the storage has more, another machine went on, and its files replace ours. One of ours that
    is newer is kept beside it, under a name that ends in SUPERSEDED_SUFFIX.

    Args:
        storage: the study's.
        folder: the study's, made if it is missing.

    Returns:
        How many bytes of each growing file are stored: a beginning of the file in the folder.

    Raises:
        InputError: folder and storage hold two different histories, what is stored is not whole, or the storage does
            not answer.
    """
    try:
        return _update_folder(storage, folder)
    except STORAGE_ERRORS as error:
        raise InputError(f"{storage.uri}: {first_line(error)}") from error


def _update_folder(storage: Storage, folder: Path) -> dict[str, int]:
    names = storage.names()
    for name in names:
        check_object_name(name, storage.uri)
    sizes = stored_sizes(storage)
    stored = {name: _read_growing(storage, folder / name, sizes.get(name)) for name in GROWING_FILES}
    orders = {name: _compare(folder / name, content) for name, content in stored.items()}
    unequal = set(orders.values()) - {_Order.EQUAL}
    if _Order.DIFFERENT in unequal or len(unequal) > 1:
        raise InputError(
            f"{folder} and {storage.uri} hold two different histories of {folder.name!r}; "
            "move the folder away to go on with the stored one"
        )
    replaced_files = [name for name in names if _is_whole_file(name) and name != NOTES_FILE]
    if NOTES_FILE in names:
        _join_notes(storage, folder / NOTES_FILE)
    if orders[JOURNAL_FILE] is _Order.STORED_LONGER:
        _replace(storage, folder, replaced_files)
    else:
        _fetch_missing(storage, folder, replaced_files)
    for name, content in stored.items():  # the journal last: what it names is there then
        if orders[name] is _Order.STORED_LONGER:
            _write(folder / name, content)
    return {name: len(content) for name, content in stored.items()}


def _is_whole_file(name: str) -> bool:
    """Whether an object is a file of the study as it is."""
    return PARTS_SUFFIX not in name and name != DRIVER_FILE and not name.startswith((f"{CLAIMS_FOLDER}/", PROBE_PREFIX))


def _read_growing(storage: Storage, path: Path, size: tuple[int, int] | None) -> bytes:
    """Read a growing file from its parts, and check it against what its driver said of it (bytes and crc32).

    Where the parts are damaged and the folder's file has all that was stored, nothing counts as stored: the driver
    stores it anew. Raises PartsError where the folder cannot help.
    """
    length, checksum = size or (0, 0)
    try:
        content = storage.read_parts(path.name)
        if len(content) < length:
            raise PartsError(f"only {len(content):,} of {length:,} bytes are there")
        if zlib.crc32(content[:length]) != checksum:
            raise PartsError(f"its first {length:,} bytes are not those that its driver stored")
    except PartsError as error:
        local = path.read_bytes() if path.exists() else b""
        if size is not None and len(local) >= length and zlib.crc32(local[:length]) == checksum:
            print(f"{storage.uri}: {path.name} is not whole ({error}); it is stored anew from {path}", flush=True)
            return b""
        raise PartsError(
            f"{storage.uri}: {path.name} is not whole: {error}; nothing was fetched. Resume the study on the machine "
            "whose folder has all of it, which stores it anew"
        ) from error
    return content


def _join_notes(storage: Storage, path: Path) -> None:
    """Join the lines of both, each once: people may write notes on this machine while a driver runs on another."""
    local = path.read_bytes() if path.exists() else b""
    lines = [*local.splitlines(keepends=True), *storage.get(path.name).splitlines(keepends=True)]
    joined = b"".join(dict.fromkeys(line for line in lines if line.endswith(b"\n")))
    if joined != local:
        _write(path, joined)


def _fetch_missing(storage: Storage, folder: Path, names: list[str]) -> None:
    """Fetch files that the folder lacks and the study still needs."""
    trials = EndedTrials(folder)
    trials.update()
    for name in names:
        if not (folder / name).exists() and trials.needs(name):
            _write(folder / name, storage.get(name))


def _replace(storage: Storage, folder: Path, names: list[str]) -> None:
    """Fetch all files; one of ours that is newer and different is renamed before."""
    ages, now = storage.ages(), time.time()
    renamed = []
    for name in names:
        path, content = folder / name, storage.get(name)
        if path.exists():
            if path.read_bytes() == content:
                continue
            if now - path.stat().st_mtime < ages.get(name, 0.0):
                renamed.append(path.replace(free_name(path.with_name(path.name + SUPERSEDED_SUFFIX))))
        _write(path, content)
    if renamed:
        print(
            f"newer than the stored copy: {format_counted(len(renamed), 'file')} of {folder}, such as "
            f"{renamed[0].name}; another machine went on with the study, so what was here is kept as "
            f"*{SUPERSEDED_SUFFIX}", flush=True,
        )  # fmt: skip


def check_object_name(name: str, uri: str) -> None:
    """Check the name of a stored object before it becomes a path: a bucket may be filled by anybody.

    Args:
        name: the object's, relative to the study.
        uri: of the storage, for the message.

    Raises:
        InputError: the path would lie outside the study's folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
        raise InputError(f"{uri} holds an object whose name lies outside the study, {name!r}; nothing was fetched")


class _Order(enum.Enum):
    EQUAL = enum.auto()
    STORED_LONGER = enum.auto()
    FILE_LONGER = enum.auto()
    DIFFERENT = enum.auto()  # neither begins with the other


def _compare(path: Path, stored: bytes) -> _Order:
    content = path.read_bytes() if path.exists() else b""
    if content == stored:
        return _Order.EQUAL
    if stored.startswith(content):
        return _Order.STORED_LONGER
    return _Order.FILE_LONGER if content.startswith(stored) else _Order.DIFFERENT


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
