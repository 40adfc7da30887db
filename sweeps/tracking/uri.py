"""Addresses of MLflow stores: the default one, and a check before a study starts."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from lowrank.errors import InputError
from lowrank.utils import HIDDEN, redact
from sweeps.records import MLFLOW_FILE

DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of databases, for addresses without a port
URI_FORMS = "sqlite:///FILE, http://HOST:PORT, https://HOST, postgresql://, mysql:// or mssql://"
CONNECT_TIMEOUT = 3.0  # seconds
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"  # of MLflow, for all that use it


def default_tracking_uri(study_dir: Path) -> str:
    """Return the address of the SQLite store in a study's own folder.

    Args:
        study_dir: the study's folder.

    Returns:
        The address, with the absolute path of the file.
    """
    return f"sqlite:///{(study_dir / MLFLOW_FILE).resolve()}"


def environment_uri() -> str | None:
    """Return the address in MLflow's own variable, and say that it is used.

    Returns:
        The address; None where the variable is not set or empty.

    Raises:
        InputError: it cannot be used; see `check_tracking_uri`.
    """
    uri = os.environ.get(TRACKING_VARIABLE)
    if not uri:
        return None
    try:
        check_tracking_uri(uri)
    except InputError as error:
        raise InputError(f"{TRACKING_VARIABLE} is set: {error}") from error
    print(f"recording into {redact(uri)}, as {TRACKING_VARIABLE} says", flush=True)
    return uri


def check_tracking_uri(uri: str) -> None:
    """Check, before a study starts, that its store's address is valid and answers.

    A server or database has `CONNECT_TIMEOUT` to answer.

    Args:
        uri: the address.

    Raises:
        InputError: the address has no known scheme or an invalid port, its password is hidden, the folder of a SQLite
            file is missing or not writable, or the server or database does not answer.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        message = f"the tracking URI must be one of {URI_FORMS}, but got {redact(uri)!r}: {error}"
        raise InputError(message) from error
    if HIDDEN in uri:
        raise InputError(
            f"the tracking URI must contain its password, which no study stores, but got {uri!r}; "
            "give the whole address by --tracking-uri"
        )
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        _check_file(uri)
    elif scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in DEFAULT_PORTS:
        _check_port(uri, parts.hostname or "localhost", port or DEFAULT_PORTS[scheme])
    else:
        raise InputError(f"the tracking URI must be one of {URI_FORMS}, but got {redact(uri)!r}")


def _check_file(uri: str) -> None:
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    if path == uri or not path:
        raise InputError(f"a SQLite tracking URI must read sqlite:///FILE (four slashes if absolute), but got {uri!r}")
    folder = Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"the tracking URI must name a file in a folder that can be written, but got {uri!r}")


def _check_server(uri: str) -> None:
    request = urllib.request.Request(_without_credentials(uri).rstrip("/") + "/health")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # it answers; MLflow's client sends the credentials, from its own variables
            return
        reason = f"it answered {error.code} to /health"
    except (OSError, ValueError) as error:
        reason = f"no answer within {CONNECT_TIMEOUT:g} s ({getattr(error, 'reason', error)})"
    raise InputError(
        f"the tracking URI must name a running MLflow server, but {redact(uri)!r} does not work: {reason}; "
        f"start it with 'mlflow server', or leave the URI out to record into the study's own folder"
    )


def _without_credentials(uri: str) -> str:
    """Return the address without user and password, since urllib accepts neither."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check_port(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise InputError(
            f"the tracking URI must name a running database, but {redact(uri)!r} does not answer: {error}"
        ) from error
