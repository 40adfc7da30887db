"""Processes: commands and commit of this code, what of the machine one may use, folders, children and their end."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils.locks import IdleWatch

POLL_SECONDS = 0.5
MIN_SHARE = 0.02  # of a core: a process that waits uses about a tenth of it
DISTRIBUTION = "lowrank-sweeps"
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable: the folder of compiled code
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROJECT = Path(__file__).resolve().parents[2]
_PROC, _CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def module_command(module: str, *arguments: object) -> list[str]:
    """Return the command line that runs a module of this project.

    The process needs `module_environment`. Python puts the current folder first on the module path, where a folder of
    the user's may have the name of one of our packages; `-P` leaves it out.

    Args:
        module: its dotted name.
        *arguments: of its command line.

    Returns:
        The words.
    """
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def module_environment(**variables: str) -> dict[str, str]:
    """Return the environment in which a process finds this project.

    Args:
        **variables: further variables.

    Returns:
        This process's environment with the project first on the module path.
    """
    path = os.pathsep.join([str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def commit() -> str:
    """Return the commit of this code.

    Returns:
        Twelve digits or a tag, `-dirty` behind it where files have changed since; the version of an installed
        package; "unknown" for a copy of the files outside git.
    """
    if _git("ls-files", Path(__file__).name):  # else the environment lies in the repository of another project
        return _git("describe", "--always", "--dirty", "--abbrev=12") or "unknown"
    from importlib.metadata import distributions  # takes a while, and --help needs no commit

    installed = list(distributions(name=DISTRIBUTION, path=[str(_PROJECT)]))
    return f"{DISTRIBUTION}-{installed[0].version}" if installed else "unknown"


def _git(*words: str) -> str:
    """Return what git prints in the folder of this file; "" if git is missing or fails."""
    import subprocess  # takes a while, and --help needs no commit

    folder = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def usable_cores() -> int:
    """Count the cores that this process may use.

    Returns:
        At least 1; smaller than the machine's count under taskset, or in a container or a service whose control group
        has a quota of processor time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _cpu_quotas())]))


def _cpu_quotas() -> Iterator[float]:
    """Yield the limits of processor time, in cores, of this process's control groups."""
    for folder in _control_groups("cpu"):
        quota, period = (*_numbers(folder / "cpu.max"), None, None)[:2]  # version 2
        if quota is None:
            quota, period = (next(_numbers(folder / f"cpu.cfs_{name}_us"), None) for name in ("quota", "period"))
        if quota is not None and period is not None and quota > 0 < period:
            yield quota / period


def available_mb() -> float | None:
    """Read how much memory this process can still get.

    Returns:
        MB (1e6 bytes): what the machine has available, or what is left of the limit of a control group if that is less;
        None where Linux's /proc/meminfo does not exist.
    """
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except OSError:
        return None
    machine = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    remaining = [*machine, *_memory_remainders()]
    return max(0, min(remaining)) / 1e6 if machine else None


def _memory_remainders() -> Iterator[int]:
    """Yield the bytes that are left of the limits of this process's control groups; cached files count as free."""
    names = (("memory.max", "memory.current", "inactive_file"),
             ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip
    for folder in _control_groups("memory"):
        for limit_file, usage_file, cached_field in names:
            limit, usage = (next(_numbers(folder / name), None) for name in (limit_file, usage_file))
            if limit is not None and usage is not None:
                yield limit - usage + _memory_field(folder / "memory.stat", cached_field)


def _memory_field(path: Path, field: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [field]), 0)


def _numbers(path: Path) -> Iterator[int]:
    """Yield the numbers at the start of a file; none if it is missing or says `max`."""
    try:
        words = path.read_text().split()
    except OSError:
        return
    for word in words:
        if not word.lstrip("-").isdecimal():
            return
        yield int(word)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, each with those above it."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        roots = [_CONTROL_GROUPS, _CONTROL_GROUPS / "unified"]
        if number != "0":  # version 1 has a tree for each controller
            roots = [_CONTROL_GROUPS / controllers, _CONTROL_GROUPS / controller]
            if controller not in controllers.split(","):
                continue
        for root in dict.fromkeys(roots):
            folder = root / path.lstrip("/")
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(root))


def processor_times(pids: Iterable[int]) -> dict[int, int]:
    """Read how much processor time processes have used, each with its descendants.

    Args:
        pids: of the processes.

    Returns:
        Ticks of the kernel by process id, 0 for one that has ended. Where there is no /proc, as on other systems than
        Linux, the present time: it cannot be known that a process does nothing.
    """
    parents, ticks = _process_table()
    totals = dict.fromkeys(pids, 0 if ticks else time.monotonic_ns())
    for pid, used in ticks.items():
        ancestor: int | None = pid
        while ancestor:
            if ancestor in totals:
                totals[ancestor] += used
                break
            ancestor = parents.get(ancestor)
    return totals


class ProcessorWatch(IdleWatch):
    """Tells when processes have used hardly any processor time for too long.

    A process that waits uses a little all the same: threads of torch and of Ray look from time to time whether
    something has come.

    Args:
        seconds: that are too long, if each process uses less than `MIN_SHARE` of a core in them.
        pids: ids of the processes; what their descendants use counts too.
    """

    def __init__(self, seconds: float, pids: Collection[int]):
        step = seconds * MIN_SHARE * max(1, len(pids)) * os.sysconf("SC_CLK_TCK")
        super().__init__(seconds, lambda: int(sum(processor_times(pids).values()) / step))


def child_processes(parent: int, *, without: Collection[int] = ()) -> list[int]:
    """List the processes below one: those it has started, their own, and so on.

    Args:
        parent: its process id.
        without: ids of processes that are left out, with all that they have started.

    Returns:
        Their process ids; none where there is no /proc, as on other systems than Linux.
    """
    parents, _ = _process_table()
    children: list[int] = []
    generation = [parent]
    while generation:
        generation = [pid for pid, above in parents.items() if above in generation and pid not in without]
        children += generation
    return children


def _process_table() -> tuple[dict[int, int], dict[int, int]]:
    """Read the parent of each process, and the ticks of processor time that it has used."""
    parents, ticks = {}, {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold spaces
        except OSError:  # it has just ended
            continue
        parents[int(path.parent.name)], ticks[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    return parents, ticks


def exit_with_parent(parent: int) -> None:
    """Have this process killed as soon as its parent has ended; call it first of all.

    On Linux the kernel does it, even if this process hangs; the parent counts as ended when the thread that started
    this process ends. Elsewhere a thread polls the parent's process id.

    Args:
        parent: process id of the parent.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # the parent ended before the call
            _kill_this_process()
        return
    threading.Thread(target=_watch, args=(parent,), name="parent-death", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    _kill_this_process()


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_private(path: Path, mode: int) -> bool:
    """Take the rights of others on a file or folder away.

    Args:
        path: the file or folder.
        mode: the rights that it then has, of its owner alone.

    Returns:
        Whether others had any rights.

    Raises:
        InputError: it belongs to another user, or is a link.
    """
    status = path.lstat()
    if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
        raise InputError(f"{path} must be this user's own, but it belongs to another or is a link; remove it")
    if not stat.S_IMODE(status.st_mode) & 0o077:
        return False
    path.chmod(mode)
    return True


def ensure_home() -> Path | None:
    """Give this process and its children a home where the user has none.

    In a container the user id may be unknown. Ray and MLflow cannot be imported without a home. A home that there is
    stays, even if it cannot be written.

    Returns:
        The home that was made, in the system's temporary folder; None where the user has one.

    Raises:
        InputError: the folder that would be the home belongs to another user, or is none.
    """
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry of this user
        home = _private_folder("home")
        os.environ["HOME"] = str(home)
        return home
    return None


def ensure_compiler_cache() -> str | None:
    """Give torch's compiler another folder where the named one cannot be written.

    The environment names it. Torch makes the folder when an optimizer takes its first step, whether anything is
    compiled or not, and a training would end there.

    Returns:
        One line for the user; None where nothing was changed.

    Raises:
        InputError: the folder in its place belongs to another user, or is none.
    """
    folder = os.environ.get(COMPILER_CACHE)
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        other = _private_folder("compiled")
        os.environ[COMPILER_CACHE] = str(other)
        return f"{COMPILER_CACHE} cannot be written ({error}); compiled code goes to {other}"


def _private_folder(name: str) -> Path:
    """Make this user's own folder in the system's temporary folder; raises InputError where another file is there."""
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} must be a folder of this user, but is none; remove it") from None
    make_private(folder, 0o700)
    return folder
