"""Servers for tests: MLflow's own, a private PostgreSQL cluster, and a disk that is soon full."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank.errors import InputError
from sweeps.tracking.uri import check_tracking_uri
from tests.support.waiting import scaled, wait_until

LIGHT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}  # what no record needs


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(uri: str) -> bool:
    try:
        check_tracking_uri(uri)
    except InputError:
        return False
    return True


@contextmanager
def mlflow_server(folder: Path, port: int, store: str | None = None) -> Iterator[str]:
    """An MLflow server until the block ends, which kills it; `store` is its database (default: SQLite in `folder`)."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "a")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **LIGHT}, start_new_session=True
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "an answer of the MLflow server")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def postgres_program(name: str) -> str | None:
    """A program of PostgreSQL, also where Debian hides it; None when it is not installed."""
    hidden = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(hidden[-1]) if hidden else None)


@contextmanager
def postgres() -> Iterator[str]:
    """A private PostgreSQL cluster, by the user `postgres` where the tests run as root; yields its address."""
    owner = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if owner:
        who = pwd.getpwnam(owner)
        os.chown(folder, who.pw_uid, who.pw_gid)
    port = free_port()

    def call(name: str, *arguments: str) -> None:
        command = [str(postgres_program(name)), *arguments]
        subprocess.run(command, user=owner, cwd=folder, check=True, capture_output=True, timeout=scaled())

    data, options = str(folder / "data"), f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        call("initdb", "-D", data, "-U", "sweeps", "-A", "trust", "--no-sync")
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "sweeps", "mlflow")
            yield f"postgresql://sweeps@127.0.0.1:{port}/mlflow"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size, mounted on `folder`; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of `folder` to the last byte; remove the file that is returned to make room again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


def may_mount() -> bool:
    """Whether this user can mount a disk."""
    if os.getuid() != 0 or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return done.returncode == 0
