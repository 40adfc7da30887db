"""What import-linter's contracts (pyproject.toml) cannot say: nothing goes in circles, and `lowrank` stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from sweeps.search import stopping_rules

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lowrank", "sweeps", "analysis")
LOAD_ALL = """
import importlib, pkgutil, sys
import lowrank

loaded = 0
for module in pkgutil.walk_packages(lowrank.__path__, "lowrank."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "triton":  # kernels need it, and only machines with a GPU have it
            raise
    else:
        loaded += 1
print(loaded, [name for name in ("ray", "optuna", "mlflow", "sweeps", "analysis") if name in sys.modules])
"""


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions, and for types alone, count."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert len(graph.modules) > 100
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_of_the_search_analysis_uses_the_stopping_rules_alone():
    """An audit of a study applies its rule again; everything else of a study it reads from the records."""
    names = set()
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "sweeps.search":
                names |= {alias.name for alias in node.names}
    assert names
    assert names <= vars(stopping_rules).keys(), names


def test_lowrank_loads_neither_ray_nor_optuna_nor_mlflow():
    """A network is compressed and trained with `lowrank` alone, without the packages that a sweep needs."""
    command = [sys.executable, "-c", LOAD_ALL]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    count, names = loaded.stdout.split(maxsplit=1)
    assert int(count) > 50
    assert names.strip() == "[]"
