"""Every command of analysis has one form; a module that is no script says so when it is run as one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import COMMANDS, main
from tests.support.environment import python_path

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ("report", "compare", "export", "collate")
MODULES = {module.removeprefix("analysis.cli."): name for name, (module, _) in COMMANDS.items() if name not in SCRIPTS}


def run_file(path: Path, arguments: list[str], monkeypatch) -> int | str | None:
    """Run a file as Python would from the command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    return ended.value.code


def test_every_module_of_the_command_line_is_a_command():
    files = {path.stem for path in (ROOT / "analysis" / "cli").glob("*.py")} - {"__init__", "arguments"}
    assert set(MODULES) == files
    assert set(COMMANDS) == {*MODULES.values(), *SCRIPTS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m analysis {command}" in capsys.readouterr().out


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_no_script_refuses_to_run_as_one(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "analysis" / "cli" / f"{name}.py"
    assert run_file(path, ["tt_dims", "x", "--broken", "why"], monkeypatch) == 2
    output = capsys.readouterr()
    assert output.err == f"error: this file is no script; run python -m analysis {MODULES[name]}\n"
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
class TestScripts:
    def test_help_names_the_file(self, name, monkeypatch, capsys):
        assert run_file(ROOT / "analysis" / f"{name}.py", ["--help"], monkeypatch) == 0
        assert f"usage: python analysis/{name}.py" in capsys.readouterr().out

    def test_a_mistake_is_one_line(self, name, monkeypatch, capsys):
        assert run_file(ROOT / "analysis" / f"{name}.py", ["--nonsense"], monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    def test_a_study_that_is_not_there_is_bad_input(self, name, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        arguments = {"compare": ["one", "two"], "collate": ["one", "two", "--name", "both"]}
        assert run_file(ROOT / "analysis" / f"{name}.py", arguments.get(name, ["--study", "one"]), monkeypatch) == 2
        assert capsys.readouterr().err.startswith("error: unknown study 'one'")
        assert list(tmp_path.iterdir()) == []


def test_a_script_runs_from_any_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": python_path()}  # of this checkout, whichever is installed
    command = [sys.executable, str(ROOT / "analysis" / "report.py"), "--help"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert "usage: python analysis/report.py" in completed.stdout
