"""Threads that mirror a study's folder to its storage while the study runs, and keep its lease.

An object appears whole or not at all, and the order of writing makes every moment a state from which `--resume` can go
on: weights before the journal lines that name them, Optuna's journal before the study's, as the search writes them.
"""

from __future__ import annotations

import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import IdleWatch, first_line
from sweeps.records import MLFLOW_FILE, SPACE_FILE, TRIALS_FOLDER, StudyLostError
from sweeps.storage.fetch import SUPERSEDED_SUFFIX, update_folder
from sweeps.storage.lease import LEASE_SECONDS, Lease
from sweeps.storage.parts import PARTS_SUFFIX, part_name
from sweeps.storage.remote import GROWING_FILES, STORAGE_ERRORS, Storage
from sweeps.storage.trial_files import EndedTrials

ROUND_SECONDS = 10.0  # between two rounds: the records that a loss of the driver's machine may cost
RENEW_SECONDS = 15.0  # between two signs of life, whatever a round takes
HANG_SECONDS = 600.0  # in which the storage takes nothing at the end of a study, after which it is given up
PART_BYTES = 4 * 2**20  # the last part of a growing file is sent again until it is this large
# Made again from the journal, or of use on this machine only
_NOT_MIRRORED = (MLFLOW_FILE, "mlflow_artifacts", "ray", "tracking.json", "tracking.log", *GROWING_FILES)
_UNFINISHED_SUFFIXES = (".tmp", ".lock", ".new", "-wal", "-shm", "-journal")


class _GrowingFile:
    """A file that only grows: how much of it is stored, and where its last part begins.

    `stored` bytes are a beginning of the file, of which `checksum` is the crc32.
    """

    def __init__(self, path: Path, stored: int):
        self.path, self.part_start, self.stored = path, stored, stored
        self.checksum = zlib.crc32(path.read_bytes()[:stored]) if stored else 0

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def store(self, put: Callable[[str, bytes], None], size: int, driver: int) -> None:
        """Store the complete lines of the first `size` bytes; `driver` is the number of this driver."""
        if size <= self.stored:
            return
        with self.path.open("rb") as file:
            file.seek(self.part_start)
            content = file.read(size - self.part_start)
        content = content[: content.rfind(b"\n") + 1]
        new = content[self.stored - self.part_start :]
        if not new:
            return
        put(part_name(self.path.name, self.part_start, driver), content)
        self.stored += len(new)
        self.checksum = zlib.crc32(new, self.checksum)
        if len(content) >= PART_BYTES:
            self.part_start = self.stored


class StudyMirror:
    """Mirrors a study's folder to its storage.

    `claim` the study before anything long, `fetch` what is stored, `start` when the study writes, and `finish` when all
    is written. Whoever calls it holds the lock of the study's folder.

    Args:
        storage: the study's.
        folder: the study's.
        seconds: between two rounds.
        lease: this driver's claim; None makes one.
        stop_driver: called in another thread when the study is lost; it must make the main thread end.
    """

    def __init__(
        self, storage: Storage, folder: Path, seconds: float = ROUND_SECONDS, lease: Lease | None = None,
        stop_driver: Callable[[], None] | None = None,
    ):  # fmt: skip
        self.storage, self.folder, self.seconds = storage, folder, seconds
        # Its own storage object: signs of life are no progress of a round
        self.lease = lease or Lease(Storage(storage.uri, folder.name), folder.name)
        self.error: str | None = None  # why the last round failed
        self.lost: StudyLostError | None = None
        self._stop_driver = stop_driver or interrupt_main_thread
        self._on_loss: list[Callable[[StudyLostError], None]] = []
        self._loss_lock, self._finish_lock = threading.Lock(), threading.Lock()
        self._growing: list[_GrowingFile] = []
        self._sent: dict[str, tuple[int, int]] = {}  # name -> time and size of the file when it was sent
        self._trial_files: set[str] = set()  # which this driver has stored
        self._ended = EndedTrials(folder)
        self._message: str | None = None
        self._finished = False
        self._end, self._released = threading.Event(), threading.Event()
        self._rounds = threading.Thread(target=self._run_rounds, name="storage", daemon=True)
        self._signs = threading.Thread(target=self._give_signs, name="lease", daemon=True)

    def claim(self) -> None:
        """Take the study, and give signs of life from now on.

        Raises:
            InputError: another driver runs the study, or the storage does not answer.
        """
        self.lease.acquire()
        self._signs.start()

    def fetch(self) -> None:
        """Bring the folder up to what is stored; only after `claim`, so that nobody stores more meanwhile.

        Raises:
            InputError: folder and storage hold two different histories, or what is stored is not whole.
        """
        stored = update_folder(self.storage, self.folder)
        self._growing = [_GrowingFile(self.folder / name, stored[name]) for name in GROWING_FILES]

    def check_new(self) -> None:
        """Make sure that nothing of the study is stored; only after `claim`, so that this stays so.

        Raises:
            InputError: there is something, or the storage does not answer.
        """
        try:
            names = self.storage.names()
        except STORAGE_ERRORS as error:
            raise InputError(f"{self.storage.uri}: {first_line(error)}") from error
        if any(name == SPACE_FILE or PARTS_SUFFIX in name for name in names):
            name = self.folder.name
            raise InputError(f"the study {name!r} exists in {self.storage.uri}; --resume {name} continues it")
        self._growing = [_GrowingFile(self.folder / name, 0) for name in GROWING_FILES]

    def start(self) -> None:
        """Start to store what changes."""
        self._rounds.start()

    def on_loss(self, action: Callable[[StudyLostError], None]) -> None:
        """Have something done at once, in another thread, when another driver has taken the study over.

        Args:
            action: takes the error that says so.
        """
        with self._loss_lock:
            self._on_loss.append(action)
            lost = self.lost
        if lost is not None:
            action(lost)

    def finish(self) -> str | None:
        """Store the rest and release the study; a study that is lost is left as it is.

        Returns:
            A line that says what is not stored; None when all is, and when the study is lost: see `lost`.
        """
        with self._finish_lock:  # the main thread and one that ends the process may both come here
            if not self._finished:
                self._message, self._finished = self._finish(), True
            return self._message

    def _finish(self) -> str | None:
        self._end.set()
        ended = self._wait_for(self._rounds)
        if ended and self._rounds.ident is not None:
            ended = self._run_limited(self._try_round)
        self._released.set()
        if self._wait_for(self._signs) and ended and self.lease.number:  # a round that hangs may write once more
            ended = self._run_limited(self._release)
        if not ended:
            self.error = f"it has taken nothing for {HANG_SECONDS:.0f} s"
        if self.error is None or self.lost is not None:
            return None
        return (
            f"{self.storage.uri} lacks what came last ({self.error}); nothing is lost, it is in {self.folder}: "
            "resume the study from there with the same --storage"
        )

    def _wait_for(self, thread: threading.Thread) -> bool:
        """Wait for the end of a thread as long as the storage takes something; returns whether it has ended."""
        if thread.ident is None:  # it never began
            return True
        watch = IdleWatch(HANG_SECONDS, lambda: self.storage.progress)
        while thread.is_alive():
            thread.join(watch.poll_seconds)
            if watch.is_idle():
                return not thread.is_alive()
        return True

    def _run_limited(self, action: Callable[[], None]) -> bool:
        """Do something with the storage as long as it takes something; returns whether it was done."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="storage", daemon=True)
        thread.start()
        ended = self._wait_for(thread)
        for error in errors:
            raise error
        return ended

    def _release(self) -> None:
        self.error = self._try(self.lease.release) or self.error

    def _run_rounds(self) -> None:
        while not self._end.wait(self.seconds) and self.lost is None:
            before = self.error
            self._try_round()
            if self.error and not before:
                print(f"{self.storage.uri} does not take the records ({self.error}); trying on", flush=True)

    def _give_signs(self) -> None:
        before = None
        while not self._released.wait(RENEW_SECONDS) and self.lost is None:
            error = self._try(self.lease.renew)
            if error and not before:
                print(
                    f"{self.storage.uri} takes no sign of life ({error}); trying on. Another driver may take the study "
                    f"over after {LEASE_SECONDS:.0f} s", flush=True,
                )  # fmt: skip
            before = error

    def _try_round(self) -> None:
        """Store what has changed; what fails is tried again in the next round."""
        self.error = self._try(self.store_changes)

    def _try(self, action: Callable[[], None]) -> str | None:
        """Do something with the storage unless the study is lost; returns what went wrong with the storage."""
        if self.lost is not None:
            return None
        try:
            action()
        except StudyLostError as error:
            self._lose(error)
        except STORAGE_ERRORS as error:
            return first_line(error)
        return None

    def _lose(self, error: StudyLostError) -> None:
        with self._loss_lock:
            if self.lost is not None:
                return
            self.lost = error
            actions = list(self._on_loss)
        for action in actions:
            action(error)
        if not self._end.is_set():
            self._stop_driver()

    def store_changes(self) -> None:
        """Store what has changed since the last round.

        Raises:
            StudyLostError: another driver has taken the study over.
            OSError: the storage does not take it.
        """
        self.lease.check()
        optuna, journal = self._growing
        journal_size = journal.size()  # measured first: whatever these lines name has been written already
        self._store_files()
        for file, size in ((optuna, optuna.size()), (journal, journal_size)):
            file.store(self._put, size, self.lease.number)
        self.lease.record({file.path.name: {"bytes": file.stored, "crc32": file.checksum} for file in self._growing})

    def _put(self, name: str, content: bytes) -> None:
        if self.lost is not None:
            raise self.lost
        self.lease.check()
        self.storage.put(name, content)

    def _store_files(self) -> None:
        present = set()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or not _is_mirrored(name):
                continue
            present.add(name)
            self._store_file(path, name)
        missing = self._trial_files - present
        if missing:
            self._ended.update()
        for name in missing:
            if not self._ended.needs(name):  # else somebody has removed it here, and this copy may be the last
                self.lease.check()
                self.storage.delete(name)
                self._trial_files.discard(name)

    def _store_file(self, path: Path, name: str) -> None:
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if self._sent.get(name) == version:
                return
            content = path.read_bytes()
        except FileNotFoundError:  # removed since it was listed
            return
        self._put(name, content)
        self._sent[name] = version
        if name.startswith(f"{TRIALS_FOLDER}/"):
            self._trial_files.add(name)


def _is_mirrored(name: str) -> bool:
    if name.partition("/")[0] in _NOT_MIRRORED or SUPERSEDED_SUFFIX in name:
        return False
    return not name.endswith(_UNFINISHED_SUFFIXES)


def interrupt_main_thread() -> None:
    """Interrupt the main thread as Ctrl-C does, even where it waits in a system call."""
    thread = threading.main_thread()
    if thread.ident is not None:
        signal.pthread_kill(thread.ident, signal.SIGINT)


@contextmanager
def mirror_study(uri: str | None, folder: Path, *, new: bool) -> Iterator[StudyMirror | None]:
    """Claim a study, fetch what is stored, and mirror its folder until the block ends.

    The block calls `start` when the study begins to write; before that nothing is stored. A line is printed if
    something is not stored at the end. The lock of the folder must be held.

    Args:
        uri: the storage; None to do nothing.
        folder: the study's.
        new: whether nothing of the study may be stored yet.

    Yields:
        The mirror, whose `error` says after the block what is not stored; None without a storage.

    Raises:
        InputError: another driver runs the study; it is new and is stored already; or what is stored cannot be fetched.
        StudyLostError: another driver has taken the study over while the block ran.
    """
    if uri is None:
        yield None
        return
    mirror = StudyMirror(Storage(uri, folder.name), folder)
    try:
        mirror.claim()
        if new:
            mirror.check_new()
        else:
            mirror.fetch()
        yield mirror
    finally:
        try:
            message = mirror.finish()
        except KeyboardInterrupt:  # that of `interrupt_main_thread`
            if mirror.lost is None:
                raise
        if mirror.lost is not None:
            raise mirror.lost
        if message:
            print(message, flush=True)
