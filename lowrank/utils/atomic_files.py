"""Write files so that a reader sees the old content or the new one, never a part; name a file by its hash.

The content goes to a temporary file in the folder of the target, is synced to disk and renamed over the target; then
the folder is synced, for a rename alone does not survive a power cut. The temporary name carries host, process and a
random part, so that two writers never share one. A writer that is killed leaves its temporary file behind; the next
write into the folder removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lowrank.errors import InputError, show_value

TEMPORARY_SUFFIX = ".tmp"
MAX_FOLDERS = 200  # of a path, so that making them one within the other stays far below Python's limit of recursion
MAX_AGE_SECONDS = 3600.0  # an older temporary file of another host is taken for one whose writer was killed
_MAX_NAME = 120  # characters of the target's name in the temporary one; file systems end at 255
_TEMPORARY_NAME = re.compile(r".+\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{12}\.tmp")
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)  # file systems that sync no folders


@contextmanager
def atomic_write(path: Path, mode: str = "wb", *, newline: str | None = None) -> Iterator[IO[Any]]:
    """Open a file whose content replaces `path` when the block ends.

    If the block raises, `path` stays as it was and the temporary file is removed.

    Args:
        path: the file to write; its folder must exist.
        mode: `wb`, or `w` for text in UTF-8.
        newline: as for `open`; `""` for `csv`.

    Yields:
        The open temporary file.

    Raises:
        ValueError: `mode` is neither `w` nor `wb`.
        OSError: the disk is full or the folder cannot be written.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', but got {mode!r}")
    with atomic_path(path) as temporary:
        encoding = None if "b" in mode else "utf-8"
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a library that opens files itself a path whose file replaces `path`.

    The temporary file replaces `path` when the block ends. Its name ends in `.tmp`: name the format to a library that
    would take it from the suffix.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary path. The block must create the file and close it.

    Raises:
        FileNotFoundError: the block has created no file.
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    temporary = temporary_path(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` when the block ends.

    If the block raises, `path` stays as it was and the temporary folder is removed.

    Args:
        path: the folder to make; its parent must exist.
        replace: a folder that is there may have content, which is removed once the new one stands in its place.

    Yields:
        The temporary folder.

    Raises:
        OSError: `path` is a folder with content and not to be replaced, or no folder, the disk is full, or the parent
            cannot be written.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            sync(entry)
        if replace and path.is_dir():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of the folder `path`; the old content is then under another name, and goes."""
    old = temporary_path(path)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by text in UTF-8.

    Args:
        path: the file to write; its folder must exist.
        text: the whole new content.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    with atomic_write(path, "w") as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of `path` by bytes.

    Args:
        path: the file to write; its folder must exist.
        content: the whole new content.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    with atomic_write(path) as file:
        file.write(content)


def file_hash(path: Path) -> str:
    """Compute the sha256 of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk.

    Args:
        path: the file or folder. File systems that cannot sync folders are left alone.

    Raises:
        OSError: `path` does not exist, or the disk is full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Return an unused name beside `path` that `remove_leftovers` recognises.

    Args:
        path: the target.

    Returns:
        A path in the same folder that carries host, process id and a random part and ends in `.tmp`.
    """
    name = f"{path.name[:_MAX_NAME]}.{_host()}.{os.getpid()}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    return path.with_name(name)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed.

    A file goes when its writer ran on this host and has ended, or when it is older than `MAX_AGE_SECONDS`. What cannot
    be removed stays.

    Args:
        folder: where to look; subfolders are left alone.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY_NAME.fullmatch(entry.name)
            if match and _is_abandoned(entry, match["host"], int(match["pid"])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)


def _is_abandoned(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    """Whether nobody writes to a temporary file any more."""
    if host == _host() and not _is_running(pid):
        return True
    try:
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return False
    return age > MAX_AGE_SECONDS


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _host() -> str:
    """The name of this host and, in a container, of its process ids: there equal numbers are different processes."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return re.sub(r"[^\w]+", "-", f"{platform.node()[:40]} {namespace}".strip()).strip("-") or "unknown"


def free_name(path: Path) -> Path:
    """Return a path that nothing has: the given one, or with -2, -3 ... after it.

    Args:
        path: the preferred one.

    Returns:
        The path.
    """
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def nearest_existing(path: Path) -> Path:
    """Return a path that exists: the given one, or the nearest above it.

    Args:
        path: a file or a folder, which may be missing.

    Returns:
        The path that exists.
    """
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def check_output_folder(folder: Path, mark: str, earlier: str) -> None:
    """Check that an output folder can be written and holds an earlier output at most.

    Args:
        folder: the absolute path of the folder that will be made or replaced.
        mark: a file that every earlier output has.
        earlier: what an earlier output is called, such as "an earlier export".

    Raises:
        InputError: a file is in its way, it holds files of another kind, or it cannot be written.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise InputError(f"--out must be a folder, but {existing} is a file")
    changed = folder.parent if existing == folder else existing
    if not os.access(changed, os.W_OK | os.X_OK):
        raise InputError(f"--out must be a folder that can be written, but nothing can be written into {changed}")
    if existing == folder and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(f"--out must be a new folder or {earlier}, but {folder} holds other files")


def make_output_parents(folder: Path) -> None:
    """Make the folders above an output folder.

    Args:
        folder: the path of the output folder, which is not made itself.

    Raises:
        InputError: they cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out must be a folder that can be written, but got {folder}: {error.strerror}") from error


def absolute_path(path: str | Path, what: str = "the path") -> Path:
    """Make a path that a user gave absolute.

    Args:
        path: the path, which may begin with `~`; there need not be such a file.
        what: what the path is of, as the message begins, e.g. `--weights`.

    Returns:
        The absolute path.

    Raises:
        InputError: no file can have this path: it has a NUL or a name that is too long, leads through more than
            MAX_FOLDERS folders, or begins with the home of a user who is unknown here.
    """
    try:
        absolute = Path(path).expanduser().resolve()
        absolute.stat()
    except RuntimeError as error:  # of expanduser
        raise InputError(f"{what} {show_value(str(path))} begins with a home folder that is unknown here") from error
    except ValueError as error:
        raise InputError(f"{what} {show_value(str(path))} has a character that no path may have") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(f"{what} {show_value(str(path))} cannot be a path: {error.strerror}") from error
    if len(absolute.parts) > MAX_FOLDERS:
        raise InputError(
            f"{what} must lead through at most {MAX_FOLDERS} folders, but got {len(absolute.parts):,} in "
            f"{show_value(str(path))}"
        )
    return absolute


def relative_path(path: Path) -> str:
    """Write a path as the user would type it.

    Args:
        path: an absolute path, or one relative to the working directory.

    Returns:
        The path, relative where it lies in the working directory, else absolute.
    """
    absolute = path.resolve()
    return os.path.relpath(path) if absolute.is_relative_to(Path.cwd()) else str(absolute)
