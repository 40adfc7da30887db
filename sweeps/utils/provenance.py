"""Where a record comes from: command, versions of packages and hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lowrank.utils import redact_arguments

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")


def command() -> str:
    """Return the running command as one would type it again.

    Returns:
        One line, its passwords hidden.
    """
    return f"python {shlex.join(redact_arguments(sys.argv))}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which results depend.

    Returns:
        Versions by name; "unknown" for a package that is not installed.
    """
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = version(f"{package}-skinny") if package == "mlflow" else "unknown"
    return installed


def code_fingerprints(modules: Mapping[str, Path]) -> dict[str, str]:
    """Compute fingerprints of the code that trains, as its files are now.

    A commit does not say which files have changed since, and an installed package has none.

    Args:
        modules: the user's own, by name: a file, or the folder of a package.

    Returns:
        16 hexadecimal digits for each of them, for `lowrank` and for `sweeps`.
    """
    packages = {name: PROJECT / name for name in ("lowrank", "sweeps")}
    return {name: _fingerprint(path) for name, path in sorted({**modules, **packages}.items())}


def _fingerprint(path: Path) -> str:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def hardware() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        `host`, `machine` (its architecture), `cpus` (their number) and `gpus` (their names).
    """
    import torch  # takes seconds, which naming the command or the commit need not wait for

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"host": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}
