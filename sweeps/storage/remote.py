"""A study's folder as objects under a URI (`--storage s3://BUCKET/PREFIX`), and how it is fetched from there.

Files that only grow (the journal, Optuna's journal) are stored in parts, everything else as it is.
"""

from __future__ import annotations

import enum
import uuid
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from lowrank.errors import InputError
from lowrank.utils import first_line, write_bytes
from sweeps.records import JOURNAL_FILE, OPTUNA_FILE, SPACE_FILE
from sweeps.utils import check_plain_name, is_uri

GROWING_FILES = (OPTUNA_FILE, JOURNAL_FILE)  # in the order in which they are stored
PARTS_SUFFIX = ".parts"  # of the folder that holds a growing file's parts
DRIVER_FILE = "driver.json"  # which driver runs the study, and when it last wrote
STORAGE_ERRORS = (OSError, pa.ArrowException)


def child_uri(uri: str, name: str) -> str:
    """Return the URI of a folder below another.

    Args:
        uri: the upper folder's, with or without options after its path.
        name: the lower folder's name.

    Returns:
        The lower folder's URI, with the same options.
    """
    parts = urlsplit(uri)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


class Storage:
    """The objects of one study under a URI; names are relative paths with slashes."""

    def __init__(self, uri: str, study: str = ""):
        """Open a storage; nothing is read or written yet.

        Args:
            uri: as given to `--storage`.
            study: the study's name; empty for all studies.

        Raises:
            InputError: the URI cannot be used, or carries a password.
        """
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise InputError(f"--storage must be a folder or a URI such as s3://BUCKET/PREFIX: {error}") from error
        if parts.password:
            raise InputError(
                "--storage must not carry a secret: leave the key out of the URI, it is read from the environment "
                "(AWS_ACCESS_KEY_ID ...), ~/.aws or the machine's role"
            )
        try:
            self._fs, root = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, ValueError) as error:
            raise InputError(
                f"--storage must be a folder or a URI such as s3://BUCKET/PREFIX: {first_line(error)}"
            ) from error
        self.uri = uri
        self._root = "/".join(filter(None, [root.rstrip("/"), study]))

    def check(self) -> None:
        """Write and delete an empty object.

        Raises:
            InputError: the storage does not answer or cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except STORAGE_ERRORS as error:
            raise InputError(f"--storage {self.uri} cannot be written: {first_line(error)}") from error

    def names(self, under: str = "") -> dict[str, int]:
        """List objects.

        Args:
            under: a folder; empty for all.

        Returns:
            The name of every object below it and its size in bytes, sorted by name.
        """
        selector = fs.FileSelector(self._path(under), recursive=True, allow_not_found=True)
        files = [entry for entry in self._fs.get_file_info(selector) if entry.type == fs.FileType.File]
        return {
            entry.path.removeprefix(self._root).lstrip("/"): entry.size
            for entry in sorted(files, key=lambda entry: entry.path)
        }

    def get(self, name: str) -> bytes:
        """Read an object.

        Args:
            name: the object's.

        Returns:
            Its content.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all.

        Args:
            name: the object's.
            content: its new content.

        Raises:
            OSError: the storage does not take it.
        """
        path = self._path(name)
        if self._fs.type_name == "local":  # object stores show nothing before the end of a write, file systems do
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(Path(path), content)
            return
        with self._fs.open_output_stream(path) as stream:
            stream.write(content)

    def age(self, name: str) -> float:
        """Return how long ago an object was written.

        The storage's clock alone is asked: machines' clocks differ and jump.

        Args:
            name: the object's.

        Returns:
            Seconds.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        now, written = (self._fs.get_file_info(self._path(path)).mtime for path in (probe, name))
        self.delete(probe)
        return (now - written).total_seconds()

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error.

        Args:
            name: the object's.
        """
        if self._fs.get_file_info(self._path(name)).type != fs.FileType.NotFound:
            self._fs.delete_file(self._path(name))

    def read_parts(self, name: str) -> bytes:
        """Read a growing file from its parts.

        Args:
            name: the file's.

        Returns:
            Its content; empty when nothing of it is stored.
        """
        return b"".join(self.get(part) for part in self.names(f"{name}{PARTS_SUFFIX}"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def list_stored_studies(uri: str) -> list[str]:
    """List the studies at a URI.

    Args:
        uri: as given to `--storage`.

    Returns:
        Their names, sorted.

    Raises:
        InputError: the storage does not answer.
    """
    try:
        names = Storage(uri).names()
    except STORAGE_ERRORS as error:
        raise InputError(f"--storage {uri} does not answer: {first_line(error)}") from error
    return sorted({name.partition("/")[0] for name in names if name.endswith(f"/{SPACE_FILE}")})


def storage_uri(storage: str | None) -> str | None:
    """Return the value of `--storage` if it is a URI that can be written.

    Args:
        storage: a URI, a folder that all machines share, or None.

    Returns:
        The URI; None for a folder or None.

    Raises:
        InputError: the URI cannot be used or written.
    """
    if storage is None or not is_uri(storage):
        return None
    Storage(storage).check()
    return storage


def fetch_study(uri: str, name: str, root: Path) -> Path:
    """Bring the folder of a stored study up to date.

    Args:
        uri: as given to `--storage`.
        name: the study's. A study that is not stored yet, but has a folder, stays as it is.
        root: the folder of studies.

    Returns:
        The study's folder.

    Raises:
        InputError: there is no such study (the text lists those there are), or folder and storage hold two different
            histories of it.
    """
    check_plain_name(name, "the name of a study")
    studies = list_stored_studies(uri)
    if name not in studies:
        if (root / name / SPACE_FILE).is_file():
            return root / name
        raise InputError(f"no study {name!r} in {uri}; choose from: {', '.join(studies) or 'none yet'}")
    update_folder(Storage(uri, name), root / name)
    return root / name


def update_folder(storage: Storage, folder: Path) -> None:
    """Bring a study's folder up to what is stored.

    A folder that is ahead stays: its driver was killed on this machine.

    Args:
        storage: the study's.
        folder: the study's, made if it is missing.

    Raises:
        InputError: folder and storage hold two different histories.
    """
    stored = {name: storage.read_parts(name) for name in GROWING_FILES}
    orders = {_compare(folder / name, content) for name, content in stored.items()} - {_Order.EQUAL}
    if _Order.DIFFERENT in orders or len(orders) > 1:
        raise InputError(
            f"{folder} and {storage.uri} hold two different histories of {folder.name!r}; "
            "move the folder away to go on with the stored one"
        )
    if orders == {_Order.FILE_LONGER}:
        return
    names = storage.names()
    for name in names:
        check_object_name(name, storage.uri)
    for name in names:
        if PARTS_SUFFIX not in name and name != DRIVER_FILE:
            _write(folder / name, storage.get(name))
    for name, content in stored.items():
        if content:
            _write(folder / name, content)


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
