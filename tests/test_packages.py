"""What packages give: each name once, from where it is defined, and nothing is imported before it is asked for."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
import lowrank
import sweeps

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(path.parent.relative_to(ROOT).parts): path
    for package in (lowrank, sweeps, analysis)
    for path in sorted(Path(package.__path__[0]).rglob("__init__.py"))
    if "lazy_exports(" in path.read_text()
}


@pytest.mark.parametrize("name", FILES)
def test_every_public_name_can_be_imported(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__
    for public in package.__all__:
        try:
            assert getattr(package, public) is not None
        except ModuleNotFoundError as error:
            if error.name != "triton":  # which the kernels alone need
                raise
    assert dir(package) == sorted(package.__all__)


@pytest.mark.parametrize("name", FILES)
def test_type_checkers_see_the_names_that_are_given(name: str) -> None:
    tree = ast.parse(FILES[name].read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.asname for node in imports for alias in node.names) == importlib.import_module(name).__all__


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"module '{name}' has no attribute 'nothing'"):
        _ = importlib.import_module(name).nothing


@pytest.mark.parametrize("name", FILES)
def test_no_module_hides_a_public_name(name: str) -> None:
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)  # once imported, the module would stand for the name


def test_importing_the_packages_loads_no_torch_ray_optuna_or_mlflow() -> None:
    names = "import lowrank, sweeps, analysis, sys; " + "; ".join(f"import {name}" for name in FILES)
    check = "assert not {'torch', 'ray', 'optuna', 'mlflow'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{names}; {check}"], check=True)
