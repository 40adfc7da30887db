"""Processes, looked at from outside."""

from __future__ import annotations

from pathlib import Path

GROUP_WORKER = "sweeps.execution.group_worker"


def group_worker_pids(parent: int) -> list[int]:
    """Return the ids of the group's processes that `parent` has started, in the order of the group."""
    pids: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_text().split("\0")
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if ppid == parent and GROUP_WORKER in arguments:
            pids[int(arguments[arguments.index(GROUP_WORKER) + 1])] = int(folder.name)
    return [pids[index] for index in sorted(pids)]


def child_pids(parent: int) -> list[int]:
    """Return the ids of a process's children; none if it has ended."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children")]  # one of each thread
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(pid) for text in lists for pid in text.split()]


def descendant_pids(ancestor: int) -> list[int]:
    """Return the ids of a process's children, of their children and so on."""
    children = child_pids(ancestor)
    return [*children, *(pid for child in children for pid in descendant_pids(child))]


def command_line(pid: int) -> str:
    """Return a process's command line as `ps` shows it; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="ignore")
    except OSError:
        return ""


def command_lines() -> dict[int, str]:
    """Return the command lines of all processes, by id."""
    return {int(path.name): command_line(int(path.name)) for path in Path("/proc").glob("[0-9]*")}


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that has, and is not yet waited for, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
