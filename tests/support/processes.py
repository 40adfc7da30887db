"""Processes of a process group, found from outside."""

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
