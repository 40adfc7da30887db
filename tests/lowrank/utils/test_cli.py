"""Every command reports an error as one line on standard error and by its exit code."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest

from lowrank.errors import InputError, UncountableError
from lowrank.utils.cli import RERUN_MESSAGE, OneLineParser, run_command
from tests.support.studies import ROOT

COMMANDS = {
    "lowrank.count": ("run", ["--network", "resnet9"]),
    "sweeps.run": ("dispatch", ["--list"]),
    "sweeps.teacher": ("dispatch", ["--list"]),
    "sweeps.spot": ("run", ["--accelerator", "L4"]),
    "sweeps.storage.__main__": ("fetch_study", ["s3://bucket", "study"]),
    "analysis.report": ("run", ["--study", "study"]),
    "analysis.compare": ("run", ["a", "b"]),
    "analysis.export": ("run", ["--study", "study"]),
    "analysis.collate": ("run", ["a", "--name", "b"]),
    "analysis.__main__": ("analysis.cli.summary.run", ["summary", "."]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("fault", "code", "begins"),
    [(KeyboardInterrupt(), 130, "interrupted; "), (InputError("two\nlines"), 2, "error: two lines")],
)
def test_every_command_reports_errors_in_one_line(command, fault, code, begins, monkeypatch, capsys, tmp_path):
    name, arguments = COMMANDS[command]

    def fails(*args, **kwargs):
        raise fault

    module = importlib.import_module(command)
    monkeypatch.setattr(name if "." in name else f"{command}.{name}", fails)
    monkeypatch.setattr(module, "find_study", lambda *args: tmp_path, raising=False)
    assert module.main(arguments) == code
    output = capsys.readouterr()
    assert output.err.startswith(begins)
    assert output.err.count("\n") == 1
    assert not output.out


def test_other_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "analysis", "report", "--study", "tt_dims"],
        ["-m", "lowrank.predict", "model", "image.png"],
        ["sweeps/teacher.py", "--network", "resnet9"],
    ],
)
def test_a_python_without_the_packages_names_the_environment_in_one_line(command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -S leaves out the folder in which the environment has its packages
    done = subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    words = r"error: \S+ has no package '\w+'; give the command inside the environment that `make sweep` makes: .*\n"
    assert re.fullmatch(words, done.stderr)


def test_a_missing_module_beside_torch_is_raised():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_command(lambda: len(importlib.import_module("no_such_module").__name__))


def test_an_uncountable_layer_is_bad_input(capsys):
    def uncountable() -> int:
        raise UncountableError("no rule for LSTM")

    assert run_command(uncountable) == 2
    assert capsys.readouterr().err == "error: no rule for LSTM\n"


def test_a_command_says_how_to_go_on_after_an_interruption(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_command(interrupted) == 130
    assert run_command(interrupted, "go on with --resume") == 130
    assert capsys.readouterr().err == f"{RERUN_MESSAGE}\ngo on with --resume\n"


def test_a_flag_with_a_typo_is_named_before_an_option_that_is_missing(capsys):
    parser = OneLineParser()
    parser.add_argument("--budget", required=True)
    for words, message in (
        (["--buget=3"], "unrecognized arguments: --buget; did you mean --budget?; see --help"),
        ([], "the following arguments are required: --budget; see --help"),
    ):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(words)
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"error: {message}\n"
