"""A thread that mirrors a study's folder to its storage while the study runs, and the lease that allows one driver.

An object appears whole or not at all, and the order of writing makes every moment a state from which `--resume` can go
on: weights before the journal lines that name them, Optuna's journal before the study's, as the search writes them.
"""

from __future__ import annotations

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

from lowrank.errors import InputError
from lowrank.utils import first_line
from sweeps.records import MLFLOW_FILE, TRIALS_FOLDER
from sweeps.storage.remote import DRIVER_FILE, GROWING_FILES, PARTS_SUFFIX, STORAGE_ERRORS, Storage

ROUND_SECONDS = 10.0  # between two rounds: the records that a loss of the driver's machine may cost
PART_BYTES = 4 * 2**20  # the last part of a growing file is sent again until it is this large
LEASE_SECONDS = 60.0  # without a sign of the driver, after which another machine may run the study
# Made again from the journal, or of use on this machine only
_NOT_MIRRORED = (MLFLOW_FILE, "mlflow_artifacts", "ray", "tracking.json", "tracking.log", *GROWING_FILES)
_UNFINISHED_SUFFIXES = (".tmp", ".lock", ".new", "-wal", "-shm", "-journal")


@dataclass
class _GrowingFile:
    """A file that only grows: how much of it is stored, and where its last part begins."""

    path: Path
    part_start: int = 0
    stored: int = 0

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def store(self, storage: Storage, size: int) -> None:
        """Store the complete lines of the first `size` bytes."""
        if size <= self.stored:
            return
        with self.path.open("rb") as file:
            file.seek(self.part_start)
            content = file.read(size - self.part_start)
        content = content[: content.rfind(b"\n") + 1]
        if self.part_start + len(content) == self.stored:
            return
        storage.put(f"{self.path.name}{PARTS_SUFFIX}/{self.part_start:015d}", content)
        self.stored = self.part_start + len(content)
        if len(content) >= PART_BYTES:
            self.part_start = self.stored


@dataclass
class StudyMirror:
    """Mirrors a study's folder to its storage.

    `start` it before the study writes, `finish` it when all is written.
    """

    storage: Storage
    folder: Path
    seconds: float = ROUND_SECONDS
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells this driver from any other
    error: str | None = None

    def start(self) -> None:
        """Claim the study and start the thread.

        Raises:
            InputError: another driver runs the study.
        """
        self._claim()
        self._growing = [_GrowingFile(self.folder / name) for name in GROWING_FILES]
        for file in self._growing:  # `update_folder` has made sure that what is stored is a beginning of the file
            file.part_start = file.stored = sum(self.storage.names(f"{file.path.name}{PARTS_SUFFIX}").values())
            if file.stored > file.size():
                raise InputError(f"another driver has just been at work on {self.folder.name!r}; try again")
        self._sent: dict[str, tuple[int, int]] = {}  # name -> time and size of the file when it was sent
        self._trial_files = set(self.storage.names(TRIALS_FOLDER))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def finish(self) -> str | None:
        """Store the rest and release the study.

        Returns:
            A line that says what is not stored; None when all is.
        """
        self._end.set()
        self._thread.join()
        self._try_round()
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
            self._try_round()
            if self.error and not before:
                print(f"{self.storage.uri} does not take the records ({self.error}); trying on", flush=True)

    def _try_round(self) -> None:
        """Store what has changed; what fails is tried again in the next round."""
        try:
            self.store_changes()
            self.error = None
        except STORAGE_ERRORS as error:
            self.error = first_line(error)

    def store_changes(self) -> None:
        """Store what has changed since the last round.

        Raises:
            OSError: the storage does not take it, or another driver has claimed the study.
        """
        owner = self._owner()
        if owner and owner["token"] != self.token:
            raise OSError(f"the driver on {owner['host']} has taken the study over")
        optuna, journal = self._growing
        journal_size = journal.size()  # measured first: whatever these lines name has been written already
        self._store_files()
        optuna.store(self.storage, optuna.size())
        journal.store(self.storage, journal_size)
        self._renew_lease()

    def _store_files(self) -> None:
        present = set()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or name.partition("/")[0] in _NOT_MIRRORED or name.endswith(_UNFINISHED_SUFFIXES):
                continue
            present.add(name)
            self._store_file(path, name)
        for name in self._trial_files - present:  # of trials that will not go on
            self.storage.delete(name)
        self._trial_files = {name for name in present if name.startswith(f"{TRIALS_FOLDER}/")}

    def _store_file(self, path: Path, name: str) -> None:
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if self._sent.get(name) == version:
                return
            content = path.read_bytes()
        except FileNotFoundError:  # removed since it was listed
            return
        self.storage.put(name, content)
        self._sent[name] = version

    # The lease: who runs the study

    def _owner(self) -> dict[str, Any] | None:
        """Who runs the study by the lease; None for nobody. Raises OSError for a lease that is damaged."""
        try:
            owner = json.loads(self.storage.get(DRIVER_FILE))
        except FileNotFoundError:
            return None
        except ValueError:
            owner = None
        fields = {"token": str, "host": str, "pid": int}
        if isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in fields.items()):
            return owner
        raise OSError(
            f"{DRIVER_FILE} is damaged and does not say who runs the study; if no other driver does, delete it"
        )

    def _claim(self) -> None:
        try:
            owner = self._owner()
        except OSError as error:
            raise InputError(f"{self.storage.uri}: {first_line(error)}") from error
        silence = self.storage.age(DRIVER_FILE) if owner else 0.0
        if owner and silence <= LEASE_SECONDS and not _is_dead(owner):
            raise InputError(
                f"the study {self.folder.name!r} is being run by {owner['host']}, heard of {max(0, silence):.0f} s "
                f"ago; if that driver is dead, try again in {max(1, LEASE_SECONDS - silence):.0f} s"
            )
        self._renew_lease()

    def _release(self) -> None:
        """Let another driver run the study at once; where that fails it must wait for the lease to end."""
        try:
            owner = self._owner()
            if owner and owner["token"] == self.token:
                self.storage.delete(DRIVER_FILE)
        except STORAGE_ERRORS as error:
            self.error = self.error or first_line(error)

    def _renew_lease(self) -> None:
        driver = {"token": self.token, "host": platform.node(), "pid": os.getpid()}
        self.storage.put(DRIVER_FILE, json.dumps(driver).encode())


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether a driver was a process of this machine that has ended."""
    return bool(owner["host"] == platform.node() and not Path(f"/proc/{owner['pid']}").exists())


@contextmanager
def mirror_study(uri: str | None, folder: Path) -> Iterator[StudyMirror | None]:
    """Mirror a study's folder while the block runs, and once more at its end.

    A line is printed if something is not stored.

    Args:
        uri: the storage; None to do nothing.
        folder: the study's.

    Yields:
        The mirror, whose `error` says after the block what is not stored; None without a storage.

    Raises:
        InputError: another driver runs the study.
    """
    if uri is None:
        yield None
        return
    mirror = StudyMirror(Storage(uri, folder.name), folder)
    mirror.start()
    try:
        yield mirror
    finally:
        message = mirror.finish()
        if message:
            print(message, flush=True)
