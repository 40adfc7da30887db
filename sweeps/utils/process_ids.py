"""Tells whether a process that once said who it is has ended. A host's name and a process's number do not tell that.

Containers and cloned machines share host names and count their processes anew; a number is given again after a process
has ended. So the identity has the boot of the kernel, the namespace of the numbers and the start of the process too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_START_FIELD = 19  # of /proc/PID/stat, counted after the command's closing bracket: clock ticks since the boot


def process_identity() -> dict[str, object]:
    """Describe this process, so that another one can tell whether it has ended.

    Returns:
        `host` and `pid`; `boot`, `namespace` and `started`, each "" where this system does not say it.
    """
    return {
        "host": platform.node(), "pid": os.getpid(), "boot": _boot(), "namespace": _namespace(),
        "started": _start(os.getpid()),
    }  # fmt: skip


def has_ended(identity: Mapping[str, Any]) -> bool:
    """Tell whether a process has certainly ended.

    Args:
        identity: what `process_identity` gave in that process, perhaps on another machine.

    Returns:
        True if it ran under the kernel that runs now, its number was counted as ours are, and there is no such process
        or one that started at another time; False wherever that cannot be told.
    """
    boot, namespace = identity.get("boot"), identity.get("namespace")
    if not boot or boot != _boot() or not namespace or namespace != _namespace():
        return False
    pid = identity.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to another user
        pass
    started, expected = _start(pid), identity.get("started")
    return bool(started and expected) and started != expected


def _boot() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[_START_FIELD] if len(fields) > _START_FIELD else ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
