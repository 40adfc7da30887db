"""What no parser takes ends every command in one clear line and exit code 2."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import subprocess
import sys

import pytest

from analysis import __main__ as analysis, collate, compare, export, report
from benchmarks import __main__ as benchmarks
from lowrank import compress, count, predict
from lowrank.utils import OneLineParser
from sweeps import run, spot, teacher
from sweeps.space.run_options import RunOptions
from sweeps.storage import __main__ as storage
from sweeps.study.command_line import make_parser, parse_options
from sweeps.tracking import __main__ as tracking
from tests.support import studies


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (run.main, "--space tt_dims --gpu-sharing mpz", "argument --gpu-sharing: invalid choice: 'mpz' (choose from "),
        (run.main, "--space tt_dims --nonsense", "unrecognized arguments: --nonsense"),
        (teacher.main, "--nonsense", "unrecognized arguments: --nonsense"),
        (spot.main, "", "the following arguments are required: --accelerator"),
        (storage.main, "", "the following arguments are required: uri, name"),
        (tracking.main, "", "the following arguments are required: study_dir"),
        (count.main, "--method cp", "the following arguments are required: --network"),
        (count.main, "--network resnet9 --budget many", "argument --budget: invalid float value: 'many'"),
        (count.main, "--network resnet9 --convention other", "argument --convention: invalid choice: 'other'"),
        (report.main, "", "the following arguments are required: --study"),
        (analysis.main, "nonsense", "argument COMMAND: invalid choice: 'nonsense'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.endswith("; see --help\n")
    assert said.err.count("\n") == 1


COMMANDS = [
    *((main, []) for main in (run.main, teacher.main, spot.main, storage.main, tracking.main, count.main, predict.main,
                              compress.main, report.main, compare.main, export.main, collate.main, benchmarks.main)),
    *((analysis.main, [name]) for name in analysis.COMMANDS),
]  # fmt: skip


class ParserReachedError(Exception):
    """Hands the parser of a command to the test."""


@pytest.fixture
def parser_of(monkeypatch):
    """Gives the parser that a command uses for its words, or for those after the name of a subcommand."""

    def find(main, words: list[str]) -> OneLineParser:
        def stop(parser, *_):
            actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            raise ParserReachedError(actions[0].choices[words[0]] if words else parser)

        with monkeypatch.context() as patch:
            patch.setattr(OneLineParser, "parse_known_args", stop)
            with pytest.raises(ParserReachedError) as reached:
                main(words)
        return reached.value.args[0]

    return find


@pytest.mark.parametrize(
    ("main", "words"), [pytest.param(*entry, id=f"{entry[0].__module__} {entry[1][:1]}") for entry in COMMANDS]
)
def test_an_abbreviation_is_not_taken_for_an_option(main, words, parser_of, capsys):
    parser = parser_of(main, words)
    assert isinstance(parser, OneLineParser)
    flags = [flag for flag in parser._option_string_actions if len(flag) > 4]
    for flag in flags:
        if flag[:-1] in flags:
            continue
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([f"{flag[:-1]}=1"])
        message = capsys.readouterr().err
        assert (ended.value.code, message.count("\n")) == (2, 1)
        assert message.startswith(f"error: unrecognized arguments: {flag[:-1]}")


def test_every_parser_reports_mistakes_in_one_line():
    files = [path for folder in ("lowrank", "sweeps", "analysis", "benchmarks", "docs", "tests")
             for path in (studies.ROOT / folder).rglob("*.py")]  # fmt: skip
    assert len(files) > 300
    calls = {
        path.relative_to(studies.ROOT).as_posix() for path in files if "ArgumentParser(" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    }  # fmt: skip
    assert not calls


IMPORTED = """
import runpy, sys
sys.argv = ["run.py", *sys.argv[1:]]
try:
    runpy.run_path("sweeps/run.py", run_name="__main__")
except SystemExit:
    pass
print([name for name in ("torch", "optuna", "ray", "pydantic", "mlflow") if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", ["--help", "--list", "--list --json", "--space tt_dim", "--sapce tt_dims"])
def test_what_trains_nothing_does_not_wait_for_slow_imports(arguments):
    command = [sys.executable, "-c", IMPORTED, *arguments.split()]
    done = subprocess.run(command, cwd=studies.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--sapce tt_dims", "; did you mean --space?; see --help\n"),
        ("--gpu-per-trial 1", "; did you mean --gpus-per-trial?; see --help\n"),
        ("--fit", "unrecognized arguments: --fit; see --help\n"),
    ],
)
def test_an_unknown_flag_suggests_the_nearest(arguments, hint, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments.split())
    assert capsys.readouterr().err.endswith(hint)


def test_an_unknown_space_suggests_the_nearest(capsys):
    assert run.main(["--space", "tt_dim"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean tt_dims?\n")


def test_the_parser_and_the_options_have_the_same_fields():
    fields = {field.name for field in dataclasses.fields(RunOptions)}
    assert vars(make_parser().parse_args([])).keys() == fields - {"began"}
    assert dataclasses.replace(parse_options([]), set=(), tag=(), keep=(), only=(), began=0.0) == RunOptions()


def test_a_plan_needs_neither_optuna_nor_ray():
    command = [sys.executable, "-c", IMPORTED, "--space", "tt_dims", "--plan"]
    done = subprocess.run(command, cwd=studies.ROOT, capture_output=True, text=True, check=True)
    assert "trials: " in done.stdout
    assert "ray" not in done.stdout.splitlines()[-1]
