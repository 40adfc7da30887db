"""Processes, looked at from outside."""

from __future__ import annotations

import ipaddress
from pathlib import Path

WILDCARDS = ("0.0.0.0", "::")
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


def tracker_pids(folder: Path) -> list[int]:
    """Return the ids of the processes that carry the study in `folder` into MLflow."""
    return [pid for pid, line in command_lines().items() if "sweeps.tracking" in line and str(folder) in line]


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that has, and is not yet waited for, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def listening_ports(pid: int) -> list[tuple[str, int]]:
    """Return host and port of every TCP socket on which a process listens; a wildcard is given as loopback."""
    return sorted({("127.0.0.1" if host in WILDCARDS else host, port) for host, port in listening_sockets(pid)})


def listening_sockets(pid: int) -> list[tuple[str, int]]:
    """Return address and port of every TCP socket on which a process listens; for all addresses one of `WILDCARDS`."""
    links = [path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # LISTEN
                digits, _, port = fields[1].partition(":")
                words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
                address = ipaddress.ip_address(b"".join(words))
                mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
                sockets.add((str(mapped or address), int(port, 16)))
    return sorted(sockets)
