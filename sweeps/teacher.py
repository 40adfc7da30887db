"""`python sweeps/teacher.py --network wrn_28_10 --data cifar10 --name wrn2810`: trains a teacher and keeps it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

# `python sweeps/teacher.py` puts sweeps/ first on the module path; the project is imported as packages only.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import re

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowrank.data import load_data
from lowrank.endings import FAILED, ended, exit_code
from lowrank.errors import InputError
from lowrank.teachers import TeacherRecord, teacher_names
from lowrank.training import DivergedError
from sweeps.folders import NAME_RULE, check_root
from sweeps.interrupt import leave, watch
from sweeps.space import Space, absolute_data, override_fields, parse_space
from sweeps.specification import Resolver
from sweeps.teacher_registry import default_uri, read_teacher, register, taken
from sweeps.tracking_process import check_tracking_uri, redact

GO_ON = "interrupted; the same command goes on from the last checkpoint"
DEFAULT_TEACHERS = Path("teachers")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
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
    watch()
    return exit_code(lambda: _unless_diverged(options), GO_ON)


def _unless_diverged(options: argparse.Namespace) -> int:
    try:
        return _dispatch(options)
    except DivergedError as error:
        return ended(FAILED, f"diverged: {error}; try a lower --set train.lr=...")


def _dispatch(options: argparse.Namespace) -> int:
    if options.list:
        return list_teachers(options.teachers, options.json)
    root = check_root(options.teachers)
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
    if options.register:
        read_teacher(root, options.register)
        return _register(root, options.register, options.tracking_uri)
    for name in ("name", "network"):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing; for example --network wrn_16_4 --data digits --name digits_wrn164")
    if not re.fullmatch(NAME_RULE, options.name):
        raise InputError("--name must be up to 80 letters, digits, `_`, `-` or `.`, and not begin with `-` or `.`, "
                         f"but got {options.name!r}")  # fmt: skip
    if (root / options.name).exists():
        raise taken(root, options.name)
    record = _train(options, root)
    print(f"{record.name}: validation error {record.val_error:.2f} %, test error {record.test_error:.2f} %, "
          f"{record.params:,} parameters, {record.seconds:.0f} s; in {options.teachers / record.name}")  # fmt: skip
    print(f"use it with `teacher: {record.name}` in a space")
    return _register(root, options.name, options.tracking_uri)


def teacher_space(options: argparse.Namespace) -> Space:
    """The options as a space of one point; raises InputError."""
    content: dict[str, Any] = {
        "question": "A teacher", "data": {"name": options.data}, "network": {"name": options.network},
        "method": {"name": "dense"}, "search": {"seed": options.seed, "stop": "none"},
    }  # fmt: skip
    epochs = [f"train.epochs={options.epochs}"] if options.epochs is not None else []
    override_fields(content, [*options.set, *epochs])
    space = parse_space(options.name, absolute_data(content))
    searched = [*space.domains, *(key for _, domains in space.alternatives for key in domains)]
    if searched:
        raise InputError(f"a teacher has one value of each field, but `{searched[0]}` has several")
    return space


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU, and none is visible here; choose from: auto, cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _train(options: argparse.Namespace, root: Path) -> TeacherRecord:
    space, device = teacher_space(options), _device(options.device)
    data = load_data(space.data, options.data_dir)
    trial = Resolver(space, data).resolve({})
    # Ray's imports, which the trainer's room brings, are only paid for once the input has been checked
    from sweeps.teacher_training import train_teacher

    print(f"{options.name}: {space.network.name}, {trial.counts['params']:,} parameters, on {data.name} "
          f"({len(data.train):,} training images), {space.epochs} epochs on {device}", flush=True)  # fmt: skip
    with _Shown(space.epochs) as shown:
        return train_teacher(
            trial, data, root, options.name, device, on_epoch=shown.epoch, on_start=shown.start
        )  # fmt: skip


class _Shown:
    """A line an epoch, and on a terminal a bar with the time left below them."""

    def __init__(self, epochs: int):
        self._console, self._epochs = Console(), epochs
        columns = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=epochs)
        self._began = time.monotonic()
        self._first = 0

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def start(self, epoch: int) -> None:
        """So many epochs were done before."""
        self._began, self._first = time.monotonic(), epoch
        self._bar.update(self._task, completed=epoch)
        if epoch:
            self._print(f"goes on after epoch {epoch}")

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch was done."""
        pace = (time.monotonic() - self._began) / (epoch - self._first)
        self._bar.update(self._task, completed=epoch)
        self._print(
            f"epoch {epoch}/{self._epochs}: training loss {metrics['train_loss']:.4f}, validation loss "
            f"{metrics['val_loss']:.4f}, error {metrics['val_error']:.2f} %; {metrics['images_per_second']:,.0f} "
            f"images/s, about {pace * (self._epochs - epoch):.0f} s left"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _register(root: Path, name: str, uri: str | None) -> int:
    """A registry that does not answer loses nothing: the teacher is in its folder."""
    uri = uri or default_uri(root)
    again = f"python sweeps/teacher.py --register {name}"
    try:
        print(f"{register(root, name, uri)} ({redact(uri)})")
    except InputError as error:
        raise InputError(f"{error}; the teacher itself is kept and can be used") from error
    except OSError as error:
        print(f"not in MLflow's model registry: {error}; the teacher itself is kept and can be used; later: {again}")
    return 0


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
    leave(main())
