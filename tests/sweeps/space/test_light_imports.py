"""Listing spaces, naming an unknown one and reading records load neither torch nor Optuna nor Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "optuna", "ray", "mlflow")


@pytest.mark.parametrize("package", ["sweeps.space", "sweeps.records", "sweeps.utils"])
def test_the_modules_of_a_package_load_quickly(package: str) -> None:
    code = f"""
import importlib, pkgutil, sys
import {package} as package
for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    if loaded:
        sys.exit(f"{{module.name}} imports {{loaded}}")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_an_unknown_space_is_named_without_torch() -> None:
    code = f"""
import sys
from lowrank.errors import InputError
from sweeps.space.parse import read_space
try:
    read_space("tt_dim")
except InputError as error:
    print(error)
sys.exit(any(name in sys.modules for name in {HEAVY!r}))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "unknown space 'tt_dim'" in finished.stdout
