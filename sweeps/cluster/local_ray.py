"""What keeps others out of a Ray that a study starts on this machine: a token, and folders of the user's own.

Ray's servers and workers listen on all addresses, and whoever they listen to may have code run. They answer only who
has the token. Ray makes its session folders writable for everybody, so they lie in a folder that nobody else enters.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import make_private
from sweeps.cluster.ray_adapter import MODE_VARIABLE, enable_token, token_is_enabled

TOKEN_VARIABLE, TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = Path("~/.ray/auth_token")  # where Ray looks for it
MIN_AGE_SECONDS = 600.0  # of a session whose folder is removed: a young one may not have its sockets yet
NEWEST_KEPT = 3  # sessions that have ended, whose logs may tell why
ANSWER_SECONDS = 2.0  # for a server to accept
LONGEST_BASE = 30  # characters: paths of Ray's sockets in it must stay below 104


def require_token(*, allow_open_ports: bool = False) -> None:
    """Have Ray ask everybody for a token, before it is started on this machine.

    Args:
        allow_open_ports: whether `RAY_AUTH_MODE` may say otherwise.

    Raises:
        InputError: `RAY_AUTH_MODE` says otherwise and may not, or the file of the token belongs to another user.
    """
    mode = os.environ.get(MODE_VARIABLE)
    if mode is not None and mode.lower() != "token":
        if not allow_open_ports:
            raise InputError(
                f"{MODE_VARIABLE}={mode} would let everybody who reaches this machine run code through Ray's ports; "
                "unset it, or say --allow-open-ports"
            )
        print(f"{MODE_VARIABLE}={mode}: whoever reaches this machine can run code through Ray's ports", flush=True)
        return
    if not os.environ.get(TOKEN_VARIABLE):
        _ensure_token()
    enable_token()


def token_file() -> Path:
    """Return the path of the file that holds the token.

    Returns:
        The path that Ray's own variable names, or Ray's default.
    """
    return Path(os.environ.get(TOKEN_PATH_VARIABLE) or TOKEN_FILE).expanduser()


def _ensure_token() -> None:
    """Make the file of the token, for its owner alone, or make one that is there so.

    Where the home cannot be written, the token lives in the environment of Ray's processes.
    """
    path = token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_hex(32))
        return
    except FileExistsError:
        pass
    except OSError:
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(32)
        return
    if make_private(path, 0o600):
        print(f"Ray's token {path} could be read by other users of this machine; now it cannot", flush=True)


def private_folder() -> Path:
    """Make the folder in which Ray keeps its files, for this user alone.

    Returns:
        A folder below `RAY_TMPDIR`, the system's temporary folder or /tmp: the first whose path is short enough.

    Raises:
        InputError: the folder belongs to another user, or is none.
    """
    bases = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]
    base = next(Path(name) for name in bases if name and (len(name) <= LONGEST_BASE or name == "/tmp"))
    folder = base / f"lowrank-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    make_private(folder, 0o700)
    return folder


def remove_ended_sessions(folder: Path) -> list[Path]:
    """Remove the folders of sessions that have ended: Ray leaves each, with logs and sockets, for ever.

    A session may be alive if its driver runs, if a server answers at one of its sockets (which tells also of a
    container that shares the folder), or if it is younger than `MIN_AGE_SECONDS`. The newest ones stay, for their logs.

    Args:
        folder: as `ray.init` gets it; it need not exist.

    Returns:
        The folders that were removed.
    """
    sessions = sorted((path for path in folder.glob("session_*_*") if not path.is_symlink()), reverse=True)
    ended = [path for path in sessions if _has_ended(path)][NEWEST_KEPT:]
    for path in ended:
        shutil.rmtree(path, ignore_errors=True)  # another command may remove it at the same time
    return ended


def _has_ended(session: Path) -> bool:
    """Whether a session `session_DATE_TIME_MICROSECONDS_PID` is surely over."""
    pid = session.name.rpartition("_")[2]
    if not pid.isdigit() or Path("/proc", pid).exists():  # that may be another process of the same number
        return False
    try:
        newest = max(path.stat().st_mtime for path in (session, *session.iterdir()))
        sockets = [path for path in (session / "sockets").glob("*") if path.is_socket()]
    except OSError:  # gone meanwhile, or not ours to look into
        return False
    return time.time() - newest > MIN_AGE_SECONDS and not any(map(_answers, sockets))


def _answers(path: Path) -> bool:
    """Whether a process listens at a socket; True where that cannot be told."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_SECONDS)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def check_private(folder: Path) -> None:
    """Check, once Ray runs, that nobody else can use it.

    Args:
        folder: as `private_folder` returned it.

    Raises:
        InputError: Ray asks for no token, or others can enter the folder or read the token.
    """
    if not token_is_enabled():
        raise InputError("Ray was started without a token, so that everybody who reaches this machine could run code")
    paths = [folder, *([] if os.environ.get(TOKEN_VARIABLE) else [token_file()])]
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(f"{path} must be for its owner alone, but its mode is {mode:04o}")
