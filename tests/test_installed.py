"""What `pip install` gives: what is declared, and commands that run what was installed, or their own checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.environment import python_path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lowrank", "sweeps", "analysis")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Triton comes with torch where it can run, botocore with boto3, requests with MLflow; without pynvml no use of a GPU is
# measured
NOT_DECLARED = {"triton", "botocore", "requests", "pynvml"}
COMMANDS = (
    "sweeps/run.py", "sweeps/teacher.py", "sweeps/spot.py",
    "analysis/report.py", "analysis/export.py", "analysis/compare.py", "analysis/collate.py",
)  # fmt: skip


def pins() -> dict[str, str]:
    """Versions by package, as requirements.txt pins them."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    matches = [match for line in lines if (match := re.match(r"([\w-]+)(?:\[\w+\])?==(\S+)", line))]
    return {canonicalize_name(match[1]): match[2] for match in matches}


def declared(*extras: str) -> dict[str, Requirement]:
    texts = [*PROJECT["dependencies"], *(text for name in extras for text in PROJECT["optional-dependencies"][name])]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_every_pinned_package_is_declared_and_the_pin_is_allowed() -> None:
    requirements = declared("cloud", "test")
    requirements.pop(PROJECT["name"])  # an extra of the project itself
    versions = pins()
    assert versions.keys() == requirements.keys()
    refused = {name: versions[name] for name, rule in requirements.items() if versions[name] not in rule.specifier}
    assert not refused


def test_every_imported_package_is_declared() -> None:
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    external = {name for name in graph.modules if name.split(".")[0] not in PACKAGES}
    imported = external - set(sys.stdlib_module_names) - NOT_DECLARED
    assert "torch" in imported
    distributions = packages_distributions()
    names = declared("cloud", "timm", "transformers")
    unknown = {
        module
        for module in imported
        if module not in names and not any(canonicalize_name(name) in names for name in distributions.get(module, ()))
    }
    assert not unknown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_file_runs_the_code_of_its_own_checkout(command: str, tmp_path: Path) -> None:
    """Of the checkout in which it lies, though another one is installed and comes first on PYTHONPATH."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the code of this checkout')\n")
    shutil.copy(ROOT / command, tmp_path / command)
    process = subprocess.run(
        [sys.executable, tmp_path / command, "--help"],
        env={**os.environ, "PYTHONPATH": python_path()}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.stderr == "the code of this checkout\n", process.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of this checkout's files and install it into a folder of its own."""
    base = tmp_path_factory.mktemp("wheel")
    source, target = base / "source", base / "installed"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", base, source], check=True)
    (wheel,) = base.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    return target


def run(installed: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": python_path(installed)}
    process = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.study
def test_an_installed_package_runs_a_study_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    command = str(installed / "bin" / "lowrank-sweep")
    code = "import lowrank, sweeps, analysis; print(lowrank.__file__, sweeps.__file__, analysis.__file__, sep='\\n')"
    files = run(installed, tmp_path, sys.executable, "-c", code).split()
    assert files == [str(installed / package / "__init__.py") for package in PACKAGES]
    assert all((installed / package / "py.typed").is_file() for package in PACKAGES)

    spaces = run(installed, tmp_path, command, "--list")
    assert "tt_dims" in spaces
    assert spaces == run(installed, tmp_path, sys.executable, "-m", "sweeps.run", "--list")
    assert spaces == run(ROOT, tmp_path, sys.executable, str(ROOT / "sweeps" / "run.py"), "--list")

    run(
        installed, tmp_path, command, "--space", "tt_dims", "--trials", "1", "--name", "one", "--out", "studies",
        "--set", "train.epochs=2", "--set", "network.width=0.25",
    )  # fmt: skip
    study = tmp_path / "studies" / "one"
    assert (study / "results.parquet").is_file()
    journal = (study / "journal.jsonl").read_text()
    assert json.loads(journal.splitlines()[0])["commit"] == f"lowrank-sweeps-{PROJECT['version']}"
    assert str(ROOT) not in journal

    run(installed, tmp_path, str(installed / "bin" / "lowrank-report"), "--study", "one")
    assert (study / "report" / "report.html").stat().st_size > 10_000
    assert "<style>" in (study / "report" / "report.html").read_text()
    run(installed, tmp_path, str(installed / "bin" / "lowrank-count"), "--network", "resnet9")
    for name in ("teacher", "compress", "export"):
        assert "usage" in run(installed, tmp_path, str(installed / "bin" / f"lowrank-{name}"), "--help")
