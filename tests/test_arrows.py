"""The rooms and the arrows between them: lowrank <- sweeps <- analysis."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "lowrank": {"sweeps", "analysis", "ray", "optuna", "mlflow"},
    "sweeps": {"analysis"},
    "analysis": {"ray"},
}
OF_SWEEPS = {  # all that analysis may know of sweeps: what is on record, and by which names
    f"sweeps.{name}" for name in ("records", "journal", "tables", "reading", "fronts", "tracking_names")
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_go_one_way(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[room]}
        assert not wrong, f"{path} imports {wrong}"


def test_analysis_knows_only_the_records():
    for path in (ROOT / "analysis").rglob("*.py"):
        of_sweeps = {name for name in imports(path) if name.split(".")[0] == "sweeps"}
        assert of_sweeps <= OF_SWEEPS, f"{path} imports {of_sweeps - OF_SWEEPS}"


def test_lowrank_loads_without_the_sweep_packages():
    code = (
        "import sys, lowrank.training, lowrank.substitute, lowrank.budget; "
        "print({'ray', 'optuna', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("room", ["sweeps", "analysis"])
def test_no_script_hides_an_installed_module(room):
    """`python sweeps/run.py` puts sweeps/ itself first on the module path."""
    for path in (ROOT / room).glob("*.py"):
        if not path.stem.startswith("__"):
            assert importlib.util.find_spec(path.stem) is None, f"{path} carries the name of an installed module"


@pytest.mark.parametrize("room", ["lowrank", "sweeps", "analysis"])
def test_files_stay_readable(room):
    for path in (ROOT / room).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, f"{path} has outgrown its room"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is over 60 lines"
