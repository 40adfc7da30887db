"""Where a record comes from: command, versions of packages, hardware and commit."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from lowrank.utils import redact_arguments

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")
DISTRIBUTION = "lowrank-sweeps"
PROJECT = Path(__file__).resolve().parents[2]


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


def hardware() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        `host`, `machine` (its architecture), `cpus` (their number) and `gpus` (their names).
    """
    import torch  # takes seconds, which naming the command or the commit need not wait for

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"host": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def commit() -> str:
    """Return the commit of this code.

    Returns:
        Twelve digits or a tag, `-dirty` behind it where files have changed since; the version of an installed
        package; "unknown" for a copy of the files outside git.
    """
    if _git("ls-files", Path(__file__).name):  # else the environment lies in the repository of another project
        return _git("describe", "--always", "--dirty", "--abbrev=12") or "unknown"
    installed = list(distributions(name=DISTRIBUTION, path=[str(PROJECT)]))
    return f"{DISTRIBUTION}-{installed[0].version}" if installed else "unknown"


def _git(*words: str) -> str:
    """Return what git prints in the folder of this file; "" if git is missing or fails."""
    folder = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
