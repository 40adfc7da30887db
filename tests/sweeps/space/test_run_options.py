"""The table of what goes with what: every option counts, or is refused."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lowrank.errors import InputError
from sweeps.run import main
from sweeps.space.run_options import TASKS_OF_OPTION, RunOptions, Task, flag
from sweeps.study.command_line import make_parser, parse_options

# Of each option what a user types, with values that are 0 where they can be
TYPED: dict[str, list[str]] = {
    "space": ["tt_dims"], "list": [], "plan": [], "probe_memory": [], "resume": ["a"], "test": [], "repeat_more": ["0"],
    "reproduce": ["a", "b"], "retrain_stopped": ["a"], "sample": ["0"], "json": [], "data": ["digits"],
    "data_dir": ["d"], "network": ["mlp"], "keep": ["a"], "only": ["a"], "weights": ["w"], "set": ["a.b=1"],
    "name": ["n"], "out": ["o"], "seed": ["0"], "trials": ["0"], "time": ["1s"], "profile": [], "note": ["n"],
    "tag": ["a=b"], "group": ["g"],
    "allow_code": [], "gpus_per_trial": ["0"], "sharing": ["mps"], "cpus_per_trial": ["0"],
    "processes_per_trial": ["0"], "max_concurrent": ["0"], "address": ["auto"], "allow_open_ports": [],
    "storage": ["s3://b"], "teachers": ["t"], "cache_dir": ["c"], "tracking_uri": ["http://h"],
}  # fmt: skip
ASKED_BY = {Task.START: ["--space", "tt_dims"], Task.PLAN: ["--plan", "--space", "tt_dims"],
            Task.PROBE: ["--probe-memory", "--space", "tt_dims"]}  # fmt: skip

ALONE = [task.value for task in Task if task is not Task.START]  # options that ask for a command of their own


def command_line(task: Task, name: str) -> list[str]:
    asked = ASKED_BY.get(task, [flag(task.value), *TYPED[task.value]])
    return asked if name == "space" and task in ASKED_BY else [*asked, flag(name), *TYPED[name]]


def test_the_table_has_every_option():
    names = {field.name for field in fields(RunOptions)} - {"began"}
    assert set(TASKS_OF_OPTION) == names == set(TYPED)
    flags = {action.option_strings[-1] for action in make_parser()._actions if action.dest != "help"}
    assert flags == {flag(name) for name in names}


@pytest.mark.parametrize("task", Task)
def test_each_option_counts_for_a_command_or_is_refused(task: Task):
    tasks_of = {name: tasks for name, tasks in TASKS_OF_OPTION.items() if name not in ALONE}
    for name, tasks in tasks_of.items():
        options = parse_options(command_line(task, name))
        assert name in options.given()
        if task in tasks:
            assert options.task() is task
        else:
            with pytest.raises(InputError, match=flag(name)) as error:
                options.task()
            assert len(str(error.value)) < 300


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ALONE, 2)))
def test_two_commands_at_once_are_refused(first: str, second: str):
    options = parse_options([flag(first), *TYPED[first], flag(second), *TYPED[second]])
    with pytest.raises(InputError, match=f"{flag(first)} and {flag(second)} are two commands; give one of them"):
        options.task()


@pytest.mark.parametrize("name", [name for name, words in TYPED.items() if words and not words[0].isdigit()])
def test_an_empty_value_is_refused(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        parse_options([flag(name), *[""] * len(TYPED[name])])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "must not be empty" in message or "invalid choice: ''" in message


def test_nothing_is_given_by_default():
    assert RunOptions().given() == ()
    assert parse_options([]).given() == ()
    options = replace(RunOptions(), seed=0, gpus_per_trial=0.0, storage="")
    assert options.given() == (
        "seed",
        "gpus_per_trial",
        "storage",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "a", "--probe-memory"], "--probe-memory and --resume are two commands; give one of them"),
        (["--plan", "--probe-memory", "--space", "tt_dims"], "--plan and --probe-memory are two commands"),
        (["--resume", "a", "--seed", "0"], "--seed would change the question of the study; --resume may change"),
        (["--reproduce", "a", "b", "--seed", "0"], "--seed cannot be used with --reproduce"),
        (
            ["--reproduce", "a", "b", "--processes-per-trial", "2"],
            "--processes-per-trial cannot be used with",
        ),
        (["--space", "tt_dims", "--test"], "--test cannot be used with a new study, only with --resume; leave it out"),
        (["--space", "tt_dims", "--repeat-more", "0"], "--repeat-more cannot be used with a new study"),
        (
            ["--space", "tt_dims", "--sample", "0"],
            "--sample cannot be used with a new study, only with --retrain-stopped",
        ),
        (["--list", "--space", "tt_dims"], "--space cannot be used with --list"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
