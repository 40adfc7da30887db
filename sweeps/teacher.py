"""`python sweeps/teacher.py --network wrn_28_10 --data cifar10 --name wrn2810`: trains a teacher and keeps it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# `python sweeps/teacher.py` puts sweeps/ first on the module path; the project is imported as packages only.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import re

import torch

from lowrank.data import load_data
from lowrank.distillation.teacher_files import teacher_names
from lowrank.errors import InputError
from lowrank.training.divergence import DivergedError
from lowrank.utils.cli import ExitCode, OneLineParser, report_error, run_command
from sweeps.records.study_folders import NAME_RULE, check_studies_folder
from sweeps.space.model import Space
from sweeps.space.parse import apply_overrides, parse_teacher_space, with_absolute_data
from sweeps.teachers.ensure import register_or_explain, train_with_progress
from sweeps.teachers.registry import name_taken_error, read_teacher
from sweeps.tracking.uri import check_tracking_uri
from sweeps.utils.signals import exit_process, install_signal_handlers

GO_ON = "interrupted; the same command goes on from the last checkpoint"
DEFAULT_TEACHERS = Path("teachers")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python sweeps/teacher.py",
        description="Train a teacher with the students' loop and splits, and keep it; the same command goes on "
        "after a kill.",
        epilog="Exit codes: 0 done, 1 the training diverged, 2 bad input, 130 interrupted.",
    )
    what = parser.add_argument_group("what to do")
    what.add_argument("--name", help="of the teacher; never overwritten")
    what.add_argument("--list", action="store_true", help="the teachers there are")
    what.add_argument("--register", metavar="NAME", help="put a teacher into MLflow's model registry (again)")
    what.add_argument("--json", action="store_true", help="--list as JSON")
    teacher = parser.add_argument_group("the teacher")
    teacher.add_argument("--network", metavar="NAME", help="such as wrn_28_10 or resnet9")
    teacher.add_argument("--data", metavar="SET", default="digits", help="digits (default), cifar10, parquet:DIR, ...")
    teacher.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    teacher.add_argument("--epochs", type=int, help="short for --set train.epochs=N")
    teacher.add_argument("--set", action="append", default=[], metavar="A.B=VALUE",
                         help="a field of train, network, data or method, as in a space")  # fmt: skip
    teacher.add_argument("--seed", type=int, default=0, help="of weights, views and order (0)")
    where = parser.add_argument_group("where")
    where.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    where.add_argument("--teachers", type=Path, metavar="DIR", default=DEFAULT_TEACHERS, help="teachers/")
    where.add_argument("--tracking-uri", metavar="URI", help="an MLflow server (default: SQLite beside the teachers)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    install_signal_handlers()
    return run_command(lambda: _unless_diverged(options), GO_ON)


def _unless_diverged(options: argparse.Namespace) -> int:
    try:
        return _dispatch(options)
    except DivergedError as error:
        return report_error(ExitCode.FAILED, f"diverged: {error}; try a lower --set train.lr=...")


def _dispatch(options: argparse.Namespace) -> int:
    if options.list:
        return list_teachers(options.teachers, options.json)
    root = check_studies_folder(options.teachers)
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
    if options.register:
        read_teacher(root, options.register)
        register_or_explain(root, options.register, options.tracking_uri)
        return 0
    for name in ("name", "network"):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing; for example --network wrn_16_4 --data digits --name digits_wrn164")
    if not re.fullmatch(NAME_RULE, options.name):
        raise InputError("--name must be up to 80 letters, digits, `_`, `-` or `.`, and not begin with `-` or `.`, "
                         f"but got {options.name!r}")  # fmt: skip
    if (root / options.name).exists():
        raise name_taken_error(root, options.name)
    space, device = teacher_space(options), _device(options.device)
    train_with_progress(space, load_data(space.data, options.data_dir), root, options.name, device)
    print(f"use it with `teacher: {options.name}` in a space")
    register_or_explain(root, options.name, options.tracking_uri)
    return 0


def teacher_space(options: argparse.Namespace) -> Space:
    """The options as a space of one point; raises InputError."""
    content: dict[str, Any] = {
        "question": "A teacher", "data": {"name": options.data}, "network": {"name": options.network},
        "method": {"name": "dense"}, "search": {"seed": options.seed, "stop": "none"},
    }  # fmt: skip
    epochs = [f"train.epochs={options.epochs}"] if options.epochs is not None else []
    apply_overrides(content, [*options.set, *epochs])
    return parse_teacher_space(options.name, with_absolute_data(content))


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU, and none is visible here; choose from: auto, cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def list_teachers(root: Path, as_json: bool) -> int:
    """Print every teacher with what it is and how good."""
    records = [read_teacher(root, name) for name in teacher_names(root)]
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))
        return 0
    for record in records:
        print(f"{record.name:24} {record.network['name']:12} {record.params:>12,} parameters  {record.data['name']:10} "
              f"validation {record.val_error:.2f} %, test {record.test_error:.2f} %")  # fmt: skip
    if not records:
        print(f"no teachers in {root}; python sweeps/teacher.py --network wrn_16_4 --name NAME trains one")
    return 0


if __name__ == "__main__":
    exit_process(main())
