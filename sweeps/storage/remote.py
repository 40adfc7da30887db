"""A study's folder as objects under a URI (`--storage s3://BUCKET/PREFIX`).

Files that only grow (the journal, Optuna's journal) are stored in parts, everything else as it is.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from lowrank.errors import InputError
from lowrank.utils import first_line, write_bytes
from sweeps.records import JOURNAL_FILE, OPTUNA_FILE, SPACE_FILE
from sweeps.storage.conditional_put import ConditionalPut
from sweeps.storage.parts import PARTS_SUFFIX, PartsError, join_order
from sweeps.utils import is_uri

GROWING_FILES = (OPTUNA_FILE, JOURNAL_FILE)  # in the order in which they are stored
PIECE_BYTES = 8 * 2**20  # of an object that are written at once
PROBE_PREFIX = ".probe-"  # of objects that are deleted at once
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
    """The objects of one study under a URI; names are relative paths with slashes.

    Attributes:
        progress: how many pieces of objects the storage has taken, for whoever waits for it in another thread.
    """

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
        self.uri, self.progress = uri, 0
        self._conditional_put = ConditionalPut(uri) if self._fs.type_name == "s3" else None
        self._keeps_conditions: bool | None = None  # unknown before the first `create`
        self._root = "/".join(filter(None, [root.rstrip("/"), study]))

    def check(self) -> None:
        """Write and delete an empty object.

        Raises:
            InputError: the storage does not answer or cannot be written.
        """
        probe = _probe_name()
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
        return {name: entry.size for name, entry in self._entries(under).items()}

    def _entries(self, under: str = "") -> dict[str, fs.FileInfo]:
        selector = fs.FileSelector(self._path(under), recursive=True, allow_not_found=True)
        files = [entry for entry in self._fs.get_file_info(selector) if entry.type == fs.FileType.File]
        files.sort(key=lambda entry: entry.path)
        return {entry.path.removeprefix(self._root).lstrip("/"): entry for entry in files}

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
        else:
            with self._fs.open_output_stream(path) as stream:
                for start in range(0, len(content), PIECE_BYTES):
                    stream.write(content[start : start + PIECE_BYTES])
                    self.progress += 1
        self.progress += 1

    def create(self, name: str, content: bytes) -> bool | None:
        """Write an object if there is none; of several machines that try it at once one succeeds.

        Args:
            name: the object's.
            content: of the object.

        Returns:
            Whether it was created; None where the storage cannot decide that, and nothing is written.

        Raises:
            OSError: the storage does not take it.
        """
        if self._fs.type_name == "local":
            path = Path(self._path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            return True
        if self._keeps_conditions is None:  # some buckets take the condition and do not look at it
            probe = _probe_name()
            self._keeps_conditions = self._create(probe, b"1") is True and self._create(probe, b"2") is False
            self.delete(probe)
        return self._create(name, content) if self._keeps_conditions else None

    def _create(self, name: str, content: bytes) -> bool | None:
        bucket, _, key = self._path(name).partition("/")
        return self._conditional_put.create(bucket, key, content) if self._conditional_put else None

    def age(self, name: str) -> float:
        """Return how long ago an object was written.

        The storage's clock alone is asked: machines' clocks differ and jump.

        Args:
            name: the object's.

        Returns:
            Seconds.

        Raises:
            OSError: the storage does not answer.
        """
        probe = _probe_name()
        self.put(probe, b"")
        now, written = (self._fs.get_file_info(self._path(path)).mtime for path in (probe, name))
        self.delete(probe)
        return (now - written).total_seconds()

    def ages(self) -> dict[str, float]:
        """Return how long ago every object of the study was written, by the storage's clock.

        Returns:
            Seconds by the object's name.

        Raises:
            OSError: the storage does not answer.
        """
        probe = _probe_name()
        self.put(probe, b"")
        times = {name: entry.mtime for name, entry in self._entries().items()}
        self.delete(probe)
        return {name: (times[probe] - time).total_seconds() for name, time in times.items()}

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

        Raises:
            PartsError: a part is missing, there twice, or shorter than it was listed.
            OSError: the storage does not answer.
        """
        content = b""
        for part in join_order(self.names(f"{name}{PARTS_SUFFIX}")):
            content += self.get(part.name)[: part.size]
            if len(content) != part.end:
                raise PartsError(f"{part.name} ends at byte {len(content):,}, but was listed up to {part.end:,}")
        return content

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


def _probe_name() -> str:
    return f"{PROBE_PREFIX}{uuid.uuid4().hex}"
