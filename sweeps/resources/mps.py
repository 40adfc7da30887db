"""NVIDIA's multi-process service (MPS): processes that share a card run on it at once, not in turns.

The daemon belongs to this process: its pipes lie in a folder of its own, and a supervisor, a shell, ends it as soon as
this process has closed it or has ended, however it ended. A client has `environment` set before it first uses the card.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PROCESSES, MPS = "processes", "mps"  # the modes of sharing a card
START_SECONDS, END_SECONDS = 20.0, 10.0
KILL_SECONDS = 5.0  # for a process that was killed, or ends after its last command
PROBE_SECONDS = 60.0

# Started before the daemon, so that no kill can come between the two. It ends nothing but what it has started.
_SUPERVISOR = f"""
"$1" -d > "${LOGS}/start.txt" 2>&1 || {{ echo failed; exit; }}
echo started
cat > /dev/null
servers=$(echo get_server_list | timeout "$3" "$1" 2> /dev/null)
daemon=$(cat "${PIPES}/{CONTROL}.pid" 2> /dev/null)
echo quit | timeout "$3" "$1" > /dev/null 2>&1 || kill -9 $daemon $servers 2> /dev/null
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


class MpsUnavailableError(Exception):
    """Why this machine has no multi-process service, in words."""


class MpsService:
    """A running service that was seen to work; a context manager."""

    def __init__(
        self, end_seconds: float = END_SECONDS, start_seconds: float = START_SECONDS,
        inherited: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start the service and check that a process can use it.

        Args:
            end_seconds: for the daemon to quit when it is asked to, after which it is killed.
            start_seconds: for the daemon to start, after which it is given up.
            inherited: the environment that its processes get; None for that of this process.

        Raises:
            MpsUnavailableError: it is not installed, does not start, or a client does not find it.
        """
        self._start_seconds, self._end_seconds = start_seconds, end_seconds
        self._inherited = os.environ if inherited is None else inherited
        program = shutil.which(CONTROL)
        if program is None:
            raise MpsUnavailableError(f"{CONTROL} is not installed")
        folder = Path(tempfile.mkdtemp(prefix="mps-"))  # the path of a socket must be short: not under a study
        self.environment = {PIPES: str(folder / "pipe"), LOGS: str(folder / "log")}
        for path in self.environment.values():
            Path(path).mkdir()
        self._supervisor = subprocess.Popen(
            ["sh", "-c", _SUPERVISOR, "supervisor", program, str(folder), f"{end_seconds:g}"],
            env=self._full_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            self._check(program)
        except MpsUnavailableError:
            self.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _full_environment(self) -> dict[str, str]:
        """Return the environment of daemon and probe; the daemon must see all cards, for Ray numbers them so."""
        environment = {**self._inherited, **self.environment}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        return environment

    def _check(self, program: str) -> None:
        stdout = self._supervisor.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self._start_seconds)[0]:
            raise MpsUnavailableError(f"{CONTROL} has not started within {self._start_seconds:g} s")
        if stdout.readline().strip() != "started":
            raise MpsUnavailableError(f"{CONTROL} does not start{self._last_log_line('start.txt')}")
        try:
            probe = self._run(PROBE, "", PROBE_SECONDS)
            servers = self._run((program,), "get_server_list\n", START_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise MpsUnavailableError(f"a process that uses it hangs{self._last_log_line('control.log')}") from error
        if probe.returncode != 0:
            lines = (probe.stdout + probe.stderr).strip().splitlines() or [f"exit code {probe.returncode}"]
            log_line = self._last_log_line("control.log")
            raise MpsUnavailableError(f"a process that uses it has no card: {lines[-1]}{log_line}")
        if not servers.stdout.strip():  # a client that does not find the daemon runs without it and says nothing
            raise MpsUnavailableError(f"a process does not find it{self._last_log_line('control.log')}")

    def _run(self, command: Sequence[str], text: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=text, env=self._full_environment(), capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip

    def _last_log_line(self, name: str) -> str:
        path = Path(self.environment[LOGS]) / name
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f" ({lines[-1].strip()})" if lines else ""

    def close(self) -> None:
        """End the service; the processes that use it must have ended.

        A supervisor that does not end in time is killed with all that it has started.
        """
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            assert pipe is not None
            pipe.close()
        limit = 2 * self._end_seconds + KILL_SECONDS  # it asks the daemon twice
        try:
            self._supervisor.wait(limit)
        except subprocess.TimeoutExpired:
            print(f"{CONTROL} has not ended within {limit:g} s and is killed", flush=True)
            os.killpg(self._supervisor.pid, signal.SIGKILL)  # its session is its own
            self._supervisor.wait(KILL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StartingService:
    """A service that a thread starts beside other work; a context manager, which ends one that nobody has taken."""

    def __init__(self) -> None:
        """Begin the start."""
        pool = ThreadPoolExecutor(1, "mps-start")
        # A copy: the start of Ray, beside which the thread reads it, changes the environment
        self._service: Future[MpsService] | None = pool.submit(MpsService, inherited=dict(os.environ))
        pool.shutdown(wait=False)

    def take(self) -> MpsService:
        """Wait for the service, and leave its end to the caller.

        Returns:
            The service, once.

        Raises:
            MpsUnavailableError: as MpsService raises it.
        """
        assert self._service is not None
        service = self._service.result()
        self._service = None  # not before: an interrupt of the wait would leave a service that nobody ends
        return service

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._service is not None:
            with suppress(MpsUnavailableError):
                self.take().close()


def needs_service(choice: str, *, shared: bool, measured: bool) -> bool:
    """Tell whether a study uses the multi-process service where there is one.

    Args:
        choice: processes, mps or auto.
        shared: whether trials share cards at all.
        measured: whether the modes are measured; without that auto is processes.

    Returns:
        True if it does.
    """
    return shared and (choice == MPS or (choice != PROCESSES and measured))


@contextmanager
def sharing_modes(
    choice: str, *, shared: bool, measured: bool, address: str | None, starting: StartingService | None = None
) -> Iterator[dict[str, dict[str, str]]]:  # fmt: skip
    """Give the modes of sharing a card that a study may use; prints a line if the service is missing.

    Args:
        choice: processes, mps or auto.
        shared: whether trials share cards at all.
        measured: whether the modes are measured; without that auto is processes.
        address: of the cluster; None for this machine alone, where a service runs while the block does.
        starting: the service, if its start has begun.

    Yields:
        The environment that each mode needs, by the mode's name.
    """
    modes: dict[str, dict[str, str]] = {PROCESSES: {}}
    if not needs_service(choice, shared=shared, measured=measured):
        yield modes
        return
    try:
        if address is not None:
            raise MpsUnavailableError("it is started on this machine alone, and the cluster may have others")
        service = MpsService() if starting is None else starting.take()
    except MpsUnavailableError as error:
        print(f"sharing {choice}: no multi-process service ({error}); trials share a card in turns", flush=True)
        yield modes
        return
    with service:
        yield ({} if choice == MPS else modes) | {MPS: service.environment}
