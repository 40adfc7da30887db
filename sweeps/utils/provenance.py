"""Where a record comes from: command, versions, hardware and commit."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lowrank.utils.text import redact_arguments

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow")


def command() -> str:
    """The command that runs, as one would type it again, without passwords."""
    return f"python {shlex.join(redact_arguments(sys.argv))}"


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = version(f"{package}-skinny") if package == "mlflow" else "unknown"
    return found


def hardware() -> dict[str, Any]:
    """Host, machine, CPUs and the names of the graphics cards."""
    import torch  # takes seconds, which naming the command or the commit need not wait for

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"host": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def commit() -> str:
    """The commit of this code, with -dirty where it was changed since; "unknown" outside git."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
