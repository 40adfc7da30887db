"""Texts for messages: errors on one line, sizes and counts with units, addresses without passwords."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

HIDDEN = "***"  # stands where a password was
SECRET_KEYS = (
    "password", "passwd", "pwd", "passphrase", "sslpassword", "secret", "secret_key", "client_secret", "token",
    "access_token", "auth_token", "api_key", "apikey", "access_key", "secret_access_key", "aws_secret_access_key",
    "credential", "credentials", "signature", "sig",
)  # fmt: skip
_SECRET_QUERY = re.compile(rf"([?&;](?:{'|'.join(SECRET_KEYS)})=)[^&;#]*", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?P<key>-{0,2}[\w.-]+)=(?P<value>.*://.*)", re.DOTALL)
_MODULE_FILE = str(Path("torch", "nn", "modules", "module.py"))  # where torch calls a module's `forward`
_PROJECT = Path(__file__).resolve().parents[2]
_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def first_line(error: BaseException, limit: int | None = None) -> str:
    """Return an error's text up to its first line break.

    Args:
        error: any exception.
        limit: the most characters to return; None for no limit.

    Returns:
        The first line, or the name of the error's class if it has no text.
    """
    return _lines(error)[0][:limit]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text.

    Libraries that copy a traceback into the text put the reason there.

    Args:
        error: any exception.

    Returns:
        The last line, or the name of the error's class if it has no text.
    """
    return _lines(error)[-1].strip()


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's whole text with its line breaks replaced by spaces.

    Args:
        error: any exception.
        limit: the most characters to return; a longer text ends in `...`.

    Returns:
        One line, or the name of the error's class if it has no text.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe_error(error: BaseException) -> str:
    """Describe an error of the user's code in one line.

    Args:
        error: that was caught.

    Returns:
        Its class, its first line and the place of the user's last line on the way to it, where there is one.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(frame)]
    location = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{location}"


def is_raised_in_forward(error: BaseException) -> bool:
    """Tell whether an error was raised while a network ran.

    Torch's frames are known by their file, so that commands that need no torch do not import it.

    Args:
        error: that was caught.

    Returns:
        True for an error inside the `forward`, or a hook, of any module.
    """
    codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name == "_call_impl" and code.co_filename.endswith(_MODULE_FILE) for code in codes)


def is_of_network(error: BaseException) -> bool:
    """Tell whether an error comes from the code of a network of the user's, while the network runs.

    Args:
        error: that was caught.

    Returns:
        True where no line of this project lies between the user's last one and the error.
    """
    frames = list(traceback.extract_tb(error.__traceback__))
    last = max((index for index, frame in enumerate(frames) if _is_project_code(frame)), default=-1)
    return is_raised_in_forward(error) and any(map(_is_user_code, frames[last + 1 :]))


def _is_project_code(frame: traceback.FrameSummary) -> bool:
    return _lies_in(frame, [_PROJECT / package for package in ("lowrank", "sweeps", "analysis")])


def _is_user_code(frame: traceback.FrameSummary) -> bool:
    is_file = not frame.filename.startswith("<")
    return is_file and not _is_project_code(frame) and not _lies_in(frame, installed_folders())


def _lies_in(frame: traceback.FrameSummary, folders: Iterable[Path]) -> bool:
    path = Path(frame.filename).resolve()  # an environment may be used by a link
    return any(path.is_relative_to(folder) for folder in folders)


@lru_cache(maxsize=1)
def installed_folders() -> tuple[Path, ...]:
    """Find the folders of Python's own modules and of installed packages.

    Returns:
        Absolute paths, each once.
    """
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def format_bytes(count: float) -> str:
    """Return a number of bytes in MB (1e6) or GB (1e9).

    Args:
        count: bytes.

    Returns:
        E.g. `45.0 MB` or `2.2 GB`.
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def format_count(count: float) -> str:
    """Return a count with three digits and a unit.

    Args:
        count: e.g. parameters or mult-adds.

    Returns:
        E.g. `85.3k` or `6.57M`; below 1000 the number itself.
    """
    for unit, size in _UNITS:
        if count >= 0.9995 * size:  # which rounds to 1.00
            return f"{count / size:#.3g}".rstrip(".") + unit
    return f"{count:g}"


def format_round_count(count: float) -> str:
    """Return a round count as an axis shows it, without trailing zeros.

    Args:
        count: the value at a tick.

    Returns:
        E.g. `50k` or `1.5M`; below 1000 the number itself.
    """
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def format_counted(count: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the form that belongs to it.

    Args:
        count: of the things.
        noun: in the singular.
        plural: of the noun; None for the noun with an `s`.

    Returns:
        E.g. `1 epoch`, `2,000 epochs` or `0.5 CPUs`.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"


def format_times(count: int) -> str:
    """Say how often something happened.

    Args:
        count: at least 0.

    Returns:
        E.g. `once`, `twice`, `3 times`.
    """
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def redact(uri: str) -> str:
    """Return an address without its passwords, for messages and files.

    The password of `user:password@host` and the values of known secret query keys (`SECRET_KEYS`) become `***`.

    Args:
        uri: an address, or any other text.

    Returns:
        The address; the same text where it has nothing to hide.
    """
    scheme, separator, location = uri.partition("://")
    if not separator or not scheme or ("@" not in location and "=" not in location):
        return uri
    # In an address of the web the user stands before the first slash; a database's password may have slashes.
    end = len(location)
    if scheme.lower() in ("http", "https"):
        end = min((location.index(mark) for mark in "/?#" if mark in location), default=end)
    redacted = _without_password(f"{scheme}://{location[:end]}") + location[end:]
    return _SECRET_QUERY.sub(rf"\g<1>{HIDDEN}", redacted)


def _without_password(uri: str) -> str:
    """An address with the password of `user:password@host` hidden; its query stays as it is."""
    from sqlalchemy.engine import make_url  # takes a quarter of a second
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # e.g. a port that is no number
        return re.sub(r"(://[^:/@]*):.*@", rf"\1:{HIDDEN}@", uri)
    if url.password is None:
        return uri
    host = (url.host or "").rpartition("@")[2]  # what stands before it belongs to the password
    _, mark, query = uri.partition("@")[2].partition("?")
    return url.set(host=host, query={}).render_as_string(hide_password=True) + mark + query


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the words of a command line without passwords.

    Args:
        arguments: the words; an address is recognised alone and after `--flag=` or `key=`.

    Returns:
        The words, each through `redact`.
    """
    return [_redact_argument(argument) for argument in arguments]


def _redact_argument(argument: str) -> str:
    match = _ASSIGNMENT.fullmatch(argument)
    return f"{match['key']}={redact(match['value'])}" if match else redact(argument)
