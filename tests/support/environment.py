"""Environment variables that the commands of a test see."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_path(packages: Path = ROOT) -> str:
    """Return a PYTHONPATH for a new process: the packages of a folder, and libraries from where this process has them.

    Args:
        packages: the folder of our packages; this checkout unless given.
    """
    libraries = [path for path in sys.path if os.path.isabs(path) and Path(path) != ROOT]
    return os.pathsep.join([str(packages), *libraries])


@contextmanager
def changed_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables while the block runs; None removes one."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
