"""NVIDIA's multi-process service (MPS): processes that share a card run on it at once, not in turns.

The service is this process's own: its pipes lie in a folder of its own, and a keeper ends it as soon as this process
has closed it or has ended, however it ended. Who is to use it has `environment` set before it first touches the card.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PROCESSES, MPS = "processes", "mps"  # sharing modes of a card
START_SECONDS, END_SECONDS = 20.0, 10.0
PROBE_SECONDS = 60.0

# Started before the daemon, so that no kill can come between the two; what it started is all that it ever ends.
_KEEPER = f"""
"$1" -d > "${LOGS}/start.txt" 2>&1 || {{ echo failed; exit; }}
echo started
cat > /dev/null
servers=$(echo get_server_list | timeout {END_SECONDS:g} "$1" 2> /dev/null)
daemon=$(cat "${PIPES}/{CONTROL}.pid" 2> /dev/null)
echo quit | timeout {END_SECONDS:g} "$1" > /dev/null 2>&1 || kill -9 $daemon $servers 2> /dev/null
rm -rf "$2"
"""
# The smallest client: a context on the first card. Its exit code is CUDA's.
_PROBE = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
code = code or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
print(f"CUDA error {code}" if code else "")
raise SystemExit(bool(code))
"""
PROBE = (sys.executable, "-c", _PROBE)


class NoServiceError(Exception):
    """Why this machine has no multi-process service, in words."""


class Service:
    """A running service; a context manager."""

    def __init__(self) -> None:
        """Start it and see that a process can use it; raises NoServiceError."""
        program = shutil.which(CONTROL)
        if program is None:
            raise NoServiceError(f"{CONTROL} is not installed")
        folder = Path(tempfile.mkdtemp(prefix="mps-"))  # sockets have short paths: not under a study
        self.environment = {PIPES: str(folder / "pipe"), LOGS: str(folder / "log")}
        for path in self.environment.values():
            Path(path).mkdir()
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", program, str(folder)], env=self._around(), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            self._check(program)
        except NoServiceError:
            self.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _around(self) -> dict[str, str]:
        """The environment of daemon and clients; the daemon must see all cards, since Ray numbers them so."""
        around = {**os.environ, **self.environment}
        around.pop("CUDA_VISIBLE_DEVICES", None)
        return around

    def _check(self, program: str) -> None:
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline().strip() != "started":
            raise NoServiceError(f"{CONTROL} does not start{self._said('start.txt')}")
        try:
            probe = self._asked(PROBE, "", PROBE_SECONDS)
            servers = self._asked((program,), "get_server_list\n", START_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise NoServiceError(f"a process that uses it hangs{self._said('control.log')}") from error
        if probe.returncode != 0:
            told = (probe.stdout + probe.stderr).strip().splitlines() or [f"exit code {probe.returncode}"]
            raise NoServiceError(f"a process that uses it has no card: {told[-1]}{self._said('control.log')}")
        if not servers.stdout.strip():  # a process that does not find it goes on without it and says nothing
            raise NoServiceError(f"a process does not find it{self._said('control.log')}")

    def _asked(self, command: Sequence[str], told: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=told, env=self._around(), capture_output=True, text=True, timeout=seconds, check=False
        )  # fmt: skip

    def _said(self, name: str) -> str:
        """The last line of a file of its logs."""
        path = Path(self.environment[LOGS]) / name
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f" ({lines[-1].strip()})" if lines else ""

    def close(self) -> None:
        """End it; the processes that use it must be gone."""
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            assert pipe is not None
            pipe.close()
        self._keeper.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def sharing_modes(
    asked: str, *, shared: bool, measured: bool, address: str | None
) -> Iterator[dict[str, dict[str, str]]]:  # fmt: skip
    """The ways of sharing a card that a study may take, each with the environment of its trials; says what is missing.

    Args:
        asked: processes, mps or auto.
        shared: whether trials share cards at all.
        measured: whether it is measured how; auto is processes where it is not.
        address: of the cluster; None for this machine alone, where a service is started for as long as this lasts.
    """
    found: dict[str, dict[str, str]] = {PROCESSES: {}}
    if not shared or asked == PROCESSES or (asked != MPS and not measured):
        yield found
        return
    try:
        if address is not None:
            raise NoServiceError("it is started on this machine alone, and the cluster may have others")
        service = Service()
    except NoServiceError as error:
        print(f"sharing {asked}: no multi-process service ({error}); trials share a card in turns", flush=True)
        yield found
        return
    with service:
        yield ({} if asked == MPS else found) | {MPS: service.environment}


def use(environment: Mapping[str, str] | None) -> None:
    """Have this process share its card by the service with this environment, if any; before it touches the card."""
    os.environ.update(environment or {})
