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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PROCESSES, MPS = "processes", "mps"  # the modes of sharing a card
START_SECONDS, END_SECONDS = 20.0, 10.0
CANCEL_SECONDS = 2.0  # instead of END_SECONDS where the start is cancelled: the user waits, and no trial has begun
KILL_SECONDS = 5.0  # for a process that was killed, or ends after its last command
PROBE_SECONDS = 60.0
END_SECONDS_FILE = "end_seconds"  # how long the supervisor lets the daemon take to answer

# Started before the daemon, so that no kill can come between the two. It ends nothing but what it has started. Its
# standard input ends when the owner closes it or ends, who then reads no more: a start that still runs is killed.
_SUPERVISOR = f"""
exec 3<&0
"$1" -d > "${LOGS}/start.txt" 2>&1 < /dev/null 3<&- & start=$!
{{ read -r _ <&3; kill -9 $start; }} > /dev/null 2>&1 & watcher=$!
trap '' PIPE
if wait $start; then echo started; else echo failed; fi
kill $watcher 2> /dev/null
read -r _ <&3
seconds=$(cat "$2/{END_SECONDS_FILE}")
servers=$(echo get_server_list | timeout "$seconds" "$1" 2> /dev/null)
daemon=$(cat "${PIPES}/{CONTROL}.pid" 2> /dev/null)
echo quit | timeout "$seconds" "$1" > /dev/null 2>&1 || kill -9 $daemon $servers 2> /dev/null
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


class Cancellation:
    """Lets one thread end what another one waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._end_wait: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End the present wait of the other thread, and each later one."""
        with self._lock:
            self._cancelled = True
            if self._end_wait is not None:
                self._end_wait()

    @property
    def cancelled(self) -> bool:
        """Whether there was a call of `cancel`."""
        return self._cancelled

    @contextmanager
    def ending(self, end_wait: Callable[[], object]) -> Iterator[None]:
        """Have `cancel` end the wait in the block.

        Args:
            end_wait: ends it; called at once where `cancel` was called before.
        """
        with self._lock:
            self._end_wait = end_wait
            if self._cancelled:
                end_wait()
        try:
            yield
        finally:
            with self._lock:
                self._end_wait = None


class MpsService:
    """A running service that was seen to work; a context manager."""

    def __init__(
        self, end_seconds: float = END_SECONDS, start_seconds: float = START_SECONDS,
        inherited: Mapping[str, str] | None = None, cancellation: Cancellation | None = None,
    ) -> None:  # fmt: skip
        """Start the service and check that a process can use it.

        Args:
            end_seconds: for the daemon to quit when it is asked to, after which it is killed.
            start_seconds: for the daemon to start, after which it is given up.
            inherited: the environment that its processes get; None for that of this process.
            cancellation: by which another thread ends the start.

        Raises:
            MpsUnavailableError: it is not installed, does not start, a client does not find it, or the start was
                cancelled.
        """
        self._cancellation = cancellation or Cancellation()
        self._start_seconds, self._end_seconds = start_seconds, end_seconds
        self._inherited = os.environ if inherited is None else inherited
        program = shutil.which(CONTROL)
        if program is None:
            raise MpsUnavailableError(f"{CONTROL} is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="mps-"))  # a socket's path must be short: not under a study
        self.environment = {PIPES: str(self._folder / "pipe"), LOGS: str(self._folder / "log")}
        for path in self.environment.values():
            Path(path).mkdir()
        (self._folder / END_SECONDS_FILE).write_text(f"{end_seconds:g}")
        self._supervisor = subprocess.Popen(
            ["sh", "-c", _SUPERVISOR, "supervisor", program, str(self._folder)],
            env=self._full_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            self._check(program)
        except BaseException as error:  # an interrupt too
            if self._cancellation.cancelled or not isinstance(error, MpsUnavailableError):
                self._shorten_end()
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _full_environment(self) -> dict[str, str]:
        """Return the environment of daemon and probe; the daemon must see all cards, for Ray numbers them so."""
        environment = {**self._inherited, **self.environment}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        return environment

    def _check(self, program: str) -> None:
        stdout = self._supervisor.stdout
        assert stdout is not None
        with self._cancellation.ending(self._end_start):
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
        with subprocess.Popen(
            command, env=self._full_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process, self._cancellation.ending(process.kill):  # fmt: skip
            try:
                stdout, stderr = process.communicate(text, seconds)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def _end_start(self) -> None:
        """Have the supervisor kill a start that still runs, and end what it has started."""
        self._shorten_end()
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()

    def _shorten_end(self) -> None:
        """Give the daemon less time to quit."""
        self._end_seconds = min(self._end_seconds, CANCEL_SECONDS)
        (self._folder / END_SECONDS_FILE).write_text(f"{self._end_seconds:g}")

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
    """A service that a thread starts beside other work; a context manager.

    Its end cancels a start that nobody has waited for, and ends a service that nobody has taken.
    """

    def __init__(self) -> None:
        """Begin the start."""
        pool = ThreadPoolExecutor(1, "mps-start")
        self._cancellation = Cancellation()
        # A copy: the start of Ray, beside which the thread reads it, changes the environment
        self._service: Future[MpsService] | None = pool.submit(
            MpsService, inherited=dict(os.environ), cancellation=self._cancellation
        )
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
            self._cancellation.cancel()
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
