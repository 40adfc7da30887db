"""A study kept at a URI (`--storage s3://BUCKET/PREFIX`): carried there as it grows, fetched on another machine.

The driver works in a local folder as always. A thread carries what has changed to URI/NAME: files that only grow (the
journal, Optuna's memory) as parts, everything else whole. An object appears whole or not at all, and the order makes
any moment a state that `--resume` can go on from: weights before the journal lines that speak of them, Optuna's memory
before the journal, as the search itself writes them.

    python -m sweeps.storage s3://BUCKET/PREFIX NAME --out studies     fetches a study's folder
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from lowrank.errors import InputError
from lowrank.utils.cli import OneLineParser, run_command
from sweeps.records.names import JOURNAL_FILE, MLFLOW_FILE, SPACE_FILE, TRIALS_FOLDER
from sweeps.utils.uris import is_uri

SECONDS = 10.0  # between two rounds: what the loss of the driver's machine may cost of the records
PART = 4 * 2**20  # bytes; the last part of a growing file is sent again until it is this large
LEASE = 60.0  # seconds without a sign after which another machine may take a study over
GROWING = ("optuna.journal", JOURNAL_FILE)  # in the order in which they are carried
PARTS = ".parts"
DRIVER = "driver.json"  # who runs the study, and when it was last heard of
# Made again from the journal, or of this machine only
_LEFT_OUT = (MLFLOW_FILE, "mlflow_artifacts", "ray", "tracking.json", "tracking.log", *GROWING)
_UNFINISHED = (".tmp", ".lock", ".new", "-wal", "-shm", "-journal")
_FAILURES = (OSError, pa.ArrowException)


def below(uri: str, name: str) -> str:
    """The URI of a folder below another, whatever options follow its path."""
    parts = urlsplit(uri)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


class Storage:
    """The objects of one study under a URI; names are relative paths with slashes."""

    def __init__(self, uri: str, study: str = ""):
        """Raises InputError when the URI cannot be used."""
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
            detail = str(error).splitlines()[0]
            raise InputError(f"--storage must be a folder or a URI such as s3://BUCKET/PREFIX: {detail}") from error
        self.uri = uri
        self._root = "/".join(filter(None, [root.rstrip("/"), study]))

    def check(self) -> None:
        """Raises InputError when the place does not answer or cannot be written."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except _FAILURES as error:
            raise InputError(f"--storage {self.uri} cannot be written: {str(error).splitlines()[0]}") from error

    def names(self, under: str = "") -> dict[str, int]:
        """Every object below `under` with its size in bytes, sorted by name."""
        selector = fs.FileSelector(self._path(under), recursive=True, allow_not_found=True)
        files = [info for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File]
        return {
            info.path.removeprefix(self._root).lstrip("/"): info.size for info in sorted(files, key=lambda i: i.path)
        }

    def get(self, name: str) -> bytes:
        """An object's content; raises FileNotFoundError."""
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; raises OSError."""
        path = self._path(name)
        local = self._fs.type_name == "local"  # object stores show nothing before the end, file systems do
        target = f"{path}.{os.getpid()}.tmp" if local else path
        if local:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(target) as stream:
            stream.write(content)
        if local:
            self._fs.move(target, path)

    def age(self, name: str) -> float:
        """Seconds since an object was written, by the storage's own clock alone: machines' clocks differ and jump."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        times = [self._fs.get_file_info(self._path(each)).mtime for each in (probe, name)]
        self.delete(probe)
        return (times[0] - times[1]).total_seconds()

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        if self._fs.get_file_info(self._path(name)).type != fs.FileType.NotFound:
            self._fs.delete_file(self._path(name))

    def grown(self, name: str) -> bytes:
        """A growing file put together from its parts; empty when there is none."""
        return b"".join(self.get(part) for part in self.names(f"{name}{PARTS}"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def stored_studies(uri: str) -> list[str]:
    """The studies at a URI; raises InputError when it does not answer."""
    try:
        found = Storage(uri).names()
    except _FAILURES as error:
        raise InputError(f"--storage {uri} does not answer: {str(error).splitlines()[0]}") from error
    return sorted({name.partition("/")[0] for name in found if name.endswith(f"/{SPACE_FILE}")})


def fetch(storage: Storage, folder: Path) -> None:
    """Bring a study's folder up to what is stored; keeps a folder that is ahead (a driver killed on this machine).

    Raises InputError when folder and storage hold two different histories.
    """
    stored = {name: storage.grown(name) for name in GROWING}
    ahead = {_compare(folder / name, content) for name, content in stored.items()} - {0}
    if 2 in ahead or len(ahead) > 1:
        raise InputError(
            f"{folder} and {storage.uri} hold two different histories of {folder.name!r}; "
            "move the folder away to go on with the stored one"
        )
    if ahead == {1}:
        return
    for name in storage.names():
        if PARTS not in name and name != DRIVER:
            _write(folder / name, storage.get(name))
    for name, content in stored.items():
        if content:
            _write(folder / name, content)


def _compare(path: Path, stored: bytes) -> int:
    """-1: the stored content is longer, 0: equal, 1: the file is longer, 2: neither begins with the other."""
    own = path.read_bytes() if path.exists() else b""
    if own == stored:
        return 0
    if stored.startswith(own):
        return -1
    return 1 if own.startswith(stored) else 2


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@dataclass
class _Growing:
    """A file that only grows: what of it is carried, and where its open part begins."""

    path: Path
    start: int = 0
    done: int = 0

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def carry(self, storage: Storage, size: int) -> None:
        """Carry the complete lines of the first `size` bytes."""
        if size <= self.done:
            return
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(size - self.start)
        content = content[: content.rfind(b"\n") + 1]
        if self.start + len(content) == self.done:
            return
        storage.put(f"{self.path.name}{PARTS}/{self.start:015d}", content)
        self.done = self.start + len(content)
        if len(content) >= PART:
            self.start = self.done


@dataclass
class Carrier:
    """Carries a study's folder to its storage while the study runs. `start` it, `finish` it when all is written."""

    storage: Storage
    folder: Path
    seconds: float = SECONDS
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    error: str | None = None

    def start(self) -> None:
        """Claim the study and begin; raises InputError while another driver has it."""
        self._claim()
        self._growing = [_Growing(self.folder / name) for name in GROWING]
        for file in self._growing:  # what is stored is a beginning of the file: `fetch` has seen to that
            file.start = file.done = sum(self.storage.names(f"{file.path.name}{PARTS}").values())
            if file.done > file.size():
                raise InputError(f"another driver has just been at work on {self.folder.name!r}; try again")
        self._sent: dict[str, tuple[int, int]] = {}
        self._trials = set(self.storage.names(TRIALS_FOLDER))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def finish(self) -> str | None:
        """Carry the rest and let the study go; a line that says what is not stored, None when all is."""
        self._end.set()
        self._thread.join()
        self._round()
        self._release()
        if self.error is None:
            return None
        return (
            f"{self.storage.uri} lacks what came last ({self.error}); nothing is lost, it is in {self.folder}: "
            "resume the study from there with the same --storage"
        )

    def _run(self) -> None:
        while not self._end.wait(self.seconds):
            before = self.error
            self._round()
            if self.error and not before:
                print(f"{self.storage.uri} does not take the records ({self.error}); trying on", flush=True)

    def _round(self) -> None:
        """Carry what has changed; what fails is tried again in the next round."""
        try:
            self.carry()
            self.error = None
        except _FAILURES as error:
            self.error = str(error).splitlines()[0] or type(error).__name__

    def carry(self) -> None:
        """One round; raises OSError."""
        owner = self._owner()
        if owner and owner["token"] != self.token:
            raise OSError(f"the driver on {owner['host']} has taken the study over")
        optuna, journal = self._growing
        journal_size = journal.size()  # measured first: everything it speaks of is then written already
        self._carry_whole()
        optuna.carry(self.storage, optuna.size())
        journal.carry(self.storage, journal_size)
        self._sign()

    def _carry_whole(self) -> None:
        present = set()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or name.partition("/")[0] in _LEFT_OUT or name.endswith(_UNFINISHED):
                continue
            present.add(name)
            self._carry_file(path, name)
        for name in self._trials - present:  # what a trial that will not go on has left
            self.storage.delete(name)
        self._trials = {name for name in present if name.startswith(f"{TRIALS_FOLDER}/")}

    def _carry_file(self, path: Path, name: str) -> None:
        try:
            about = path.stat()
            state = (about.st_mtime_ns, about.st_size)
            if self._sent.get(name) == state:
                return
            content = path.read_bytes()
        except FileNotFoundError:  # dropped since it was listed
            return
        self.storage.put(name, content)
        self._sent[name] = state

    # Who runs the study

    def _owner(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.storage.get(DRIVER))
        except FileNotFoundError:
            return None

    def _claim(self) -> None:
        owner = self._owner()
        silent = self.storage.age(DRIVER) if owner else 0.0
        if owner and silent <= LEASE and not _is_dead(owner):
            raise InputError(
                f"the study {self.folder.name!r} is being run by {owner['host']}, heard of {max(0, silent):.0f} s ago; "
                f"if that driver is dead, try again in {max(1, LEASE - silent):.0f} s"
            )
        self._sign()

    def _release(self) -> None:
        """Let another driver take the study at once; where that fails it waits for the lease to end."""
        try:
            owner = self._owner()
            if owner and owner["token"] == self.token:
                self.storage.delete(DRIVER)
        except _FAILURES as error:
            self.error = self.error or str(error).splitlines()[0]

    def _sign(self) -> None:
        about = {"token": self.token, "host": platform.node(), "pid": os.getpid()}
        self.storage.put(DRIVER, json.dumps(about).encode())


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether a driver was a process of this machine that is no more."""
    return bool(owner["host"] == platform.node() and not Path(f"/proc/{owner['pid']}").exists())


@contextmanager
def carried(uri: str | None, folder: Path) -> Iterator[None]:
    """Carry a study's folder to `uri` while the block runs, and what it left at its end; without a URI nothing.

    Raises InputError while another driver has the study.
    """
    if uri is None:
        yield
        return
    carrier = Carrier(Storage(uri, folder.name), folder)
    carrier.start()
    try:
        yield
    finally:
        behind = carrier.finish()
        if behind:
            print(behind, flush=True)


def storage_uri(place: str | None) -> str | None:
    """The URI of a --storage that is one, after a look whether it can be written; raises InputError."""
    if place is None or not is_uri(place):
        return None
    Storage(place).check()
    return place


def main(arguments: list[str] | None = None) -> int:
    """Fetch a study from its storage; returns the exit code."""
    parser = OneLineParser(prog="python -m sweeps.storage", description="Fetch a study from its storage.")
    parser.add_argument("uri", help="what the study had as --storage")
    parser.add_argument("name", help="the study")
    parser.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="folder of studies (studies/)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _fetch_and_say(options))


def _fetch_and_say(options: argparse.Namespace) -> int:
    folder = fetch_named(options.uri, options.name, options.out.resolve())
    print(f"fetched into {folder}; its trials in MLflow: python -m sweeps.tracking {folder}")
    return 0


def fetch_named(uri: str, name: str, root: Path) -> Path:
    """The folder of a stored study below `root`, brought up to date; raises InputError with the studies there are.

    A folder that is not stored yet stays as it is.
    """
    studies = stored_studies(uri)
    if name not in studies:
        if (root / name / SPACE_FILE).is_file():
            return root / name
        raise InputError(f"no study {name!r} in {uri}; choose from: {', '.join(studies) or 'none yet'}")
    fetch(Storage(uri, name), root / name)
    return root / name
