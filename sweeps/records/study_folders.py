"""The folder of a study: its name, its lock and its file space.yaml."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.errors import InputError, show_value
from lowrank.utils import absolute_path, nearest_existing, relative_path, write_text
from sweeps.records.journal import BusyError, study_lock
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE, SERIES_FILE, SPACE_FILE
from sweeps.space import DEFAULT_OUT, read_yaml
from sweeps.utils import check_plain_name, dump_yaml, is_plain_name, is_uri

if TYPE_CHECKING:
    from sweeps.space import StoredOptions

OPTIONS = "options"  # section of space.yaml for what is not part of the space: data folder, tracking address ...


def check_studies_folder(root: Path) -> Path:
    """Check that studies can be written to a folder.

    Args:
        root: the folder, which may be missing.

    Returns:
        Its absolute path.

    Raises:
        InputError: the folder can be neither written nor made.
    """
    root = absolute_path(root, "the folder of studies")
    if "?" in str(root):  # the path of an SQLite store ends there
        raise InputError(f"the folder of studies must not have `?` in its path, but got {show_value(str(root))}")
    nearest = nearest_existing(root)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"studies cannot be kept in {root}: {nearest} is not a folder that can be written")
    return root


def studies_root(storage: str | None, out: Path) -> Path:
    """Choose the folder of studies on this machine.

    Args:
        storage: the value of --storage, which is taken where it is a folder.
        out: the value of --out.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the folder can be neither written nor made.
    """
    return check_studies_folder(Path(storage) if storage and not is_uri(storage) else out)


def study_names(root: Path) -> str:
    """List the studies of a folder for a message."""
    return ", ".join(sorted(path.parent.name for path in root.glob(f"*/{SPACE_FILE}"))) or "none yet"


def new_study_folder(root: Path, name: str | None, space_name: str, taken: Collection[str] = ()) -> Path:
    """Choose the folder of a new study; it is not made.

    Args:
        root: the folder of studies.
        name: the value of --name; None takes the first free one of SPACE, SPACE_2, SPACE_3 ...
        space_name: the name of the space.
        taken: names of studies in the remote storage.

    Returns:
        The folder. It may exist with a lock alone, which a command leaves that was killed before its study began.

    Raises:
        InputError: the name has a character that it may not have, or a study has it already.
    """
    study_name = space_name if name is None else name
    check_plain_name(study_name, "--name")
    if name is not None:
        if _is_used(root / name) or name in taken:
            location = root if _is_used(root / name) else "the storage"
            raise InputError(f"the study {name!r} exists in {location}; --resume {name} continues it")
        return root / name
    number = 1
    while _is_used(folder := root / _numbered(study_name, number)) or folder.name in taken:
        number += 1
    return folder


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _is_used(folder: Path) -> bool:
    """Whether a folder holds anything but a lock."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != LOCK_FILE for path in folder.iterdir())


@contextmanager
def hold_new_study_folder(
    root: Path, name: str | None, space_name: str, taken: Collection[str] = ()
) -> Iterator[Path]:  # fmt: skip
    """Make the folder of a new study and hold its lock within the block.

    If the block ends before the study has a journal, the folder is removed with all that is in it.

    Args:
        root: the folder of studies.
        name: the value of --name; None takes the first free one of SPACE, SPACE_2, SPACE_3 ...
        space_name: the name of the space.
        taken: names of studies in the remote storage.

    Yields:
        The folder.

    Raises:
        InputError: the name has a character that it may not have, or a study has it already.
        BusyError: another command begins a study of this name.
    """
    used = list(taken)
    with ExitStack() as stack:
        while True:
            folder = new_study_folder(root, name, space_name, used)
            try:
                stack.enter_context(hold_study_folder(folder))
            except BusyError:
                if name is not None:
                    raise
                used.append(folder.name)
                continue
            if not _is_used(folder):
                break
            stack.pop_all().close()  # another command has begun its study and ended in the meantime
        try:
            yield folder
        finally:
            if not (folder / JOURNAL_FILE).exists():
                _remove_content(folder)


def _remove_content(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


@contextmanager
def hold_study_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder, which is made if it is missing.

    A folder that has nothing but the lock at the end is removed, with the folders above it that were made for it.

    Args:
        folder: the study's.

    Yields:
        Nothing.

    Raises:
        BusyError: another process holds the lock.
    """
    existing = nearest_existing(folder)
    lock = folder / LOCK_FILE
    with ExitStack() as stack:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.touch()
                number = lock.stat().st_ino
                stack.enter_context(study_lock(folder))
                if lock.stat().st_ino == number:
                    break
            except FileNotFoundError:
                pass
            stack.pop_all().close()  # the last holder has removed the lock and the folder meanwhile
        try:
            yield
        finally:
            if not _is_used(folder):
                lock.unlink()
                _remove_empty(folder, existing)


def _remove_empty(folder: Path, last: Path) -> None:
    """Remove a folder and those above it, up to `last`, which stays; one that is in use stays, and all above it."""
    while folder != last:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return
        folder = folder.parent


def find_study_folder(root: Path, name: str) -> Path:
    """Find the folder of a study.

    Args:
        root: the folder of studies.
        name: of the study.

    Returns:
        The folder.

    Raises:
        InputError: there is no such study; the text lists those there are.
    """
    if not is_plain_name(name) or not (root / name / SPACE_FILE).is_file():
        raise InputError(f"no study {name!r} in {root}; choose from: {study_names(root)}")
    return root / name


def write_space_file(folder: Path, source: Mapping[str, Any], options: StoredOptions) -> None:
    """Write space.yaml, whole or not at all.

    Args:
        folder: of the study.
        source: the space, its overrides applied.
        options: what is not part of the space.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    write_text(folder / SPACE_FILE, dump_yaml({**source, OPTIONS: options.to_json()}))


def read_space_file(folder: Path) -> tuple[dict[str, object], StoredOptions]:
    """Read space.yaml.

    Args:
        folder: of the study.

    Returns:
        The space and the options that `write_space_file` was given.

    Raises:
        InputError: the file is damaged.
    """
    # Pydantic takes a while to import, and --help and --list do without
    from lowrank.utils import validate_model
    from sweeps.space import StoredOptions

    content = read_yaml(folder / SPACE_FILE)
    options = content.pop(OPTIONS, None)
    if not isinstance(options, dict) or not {"space", "data_dir", "tracking_uri"} <= options.keys():
        raise InputError(f"{folder / SPACE_FILE} is damaged: its section `{OPTIONS}` is not whole")
    return content, validate_model(StoredOptions, options, OPTIONS)


def resume_command(folder: Path, storage: str | None = None) -> str:
    """Write the command that goes on with a study, or with the series that has it.

    Args:
        folder: the study's or the series'.
        storage: URI of the place that holds a copy of the folder; a folder that is here names it itself.

    Returns:
        The command, quoted for a shell.
    """
    if (folder.parent / SERIES_FILE).is_file():
        folder, storage = folder.parent, storage.rpartition("/")[0] if storage else None
    words = ["python", "sweeps/run.py", "--resume", folder.name]
    if folder.parent != DEFAULT_OUT.resolve():
        words += ["--out", relative_path(folder.parent)]
    if storage:
        words += ["--storage", storage]
    return shlex.join(words)
