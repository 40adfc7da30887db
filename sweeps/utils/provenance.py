"""Where a record comes from: command, versions of packages and hardware."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lowrank.utils import redact_arguments

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


def hardware() -> dict[str, Any]:
    """Describe this machine.

    Returns:
        `host`, `machine` (its architecture), `cpus` (their number) and `gpus` (their names).
    """
    import torch  # takes seconds, which naming the command or the commit need not wait for

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"host": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}
