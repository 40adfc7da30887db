"""`python sweeps/teacher.py --network wrn_28_10 --data cifar10 --name wrn2810`: train a teacher and keep it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from lowrank.errors import InputError
from lowrank.utils import ExitCode, OneLineParser, report_error, run_command
from sweeps.utils import check_plain_name, exit_process, install_signal_handlers

if TYPE_CHECKING:
    from sweeps.space import Space

INTERRUPTED_MESSAGE = "interrupted; the same command goes on from the last checkpoint"
DEFAULT_TEACHERS = Path("teachers")
# The options that count where no teacher is trained; the others are refused, so that none is passed over
OPTIONS_OF_TASK = {"list": ("list", "json", "teachers"), "register": ("register", "teachers", "tracking_uri")}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The command line of `sweeps/teacher.py`."""

    name: str | None
    list: bool
    register: str | None
    json: bool
    network: str | None
    width: float | None
    data: str
    data_dir: Path | None
    epochs: int | None
    set: Sequence[str]
    seed: int
    device: str
    teachers: Path
    tracking_uri: str | None


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser; its destinations are the fields of `TeacherConfig`.
    """
    parser = OneLineParser(
        prog="python sweeps/teacher.py",
        description="Train a teacher with the students' loop and splits, and keep it; the same command goes on "
        "after a kill.",
        epilog="Exit codes: 0 done, 1 the training diverged, 2 bad input, 130 interrupted.",
    )
    task = parser.add_argument_group("what to do")
    task.add_argument("--name", help="of the teacher; never overwritten")
    task.add_argument("--list", action="store_true", help="list the teachers")
    task.add_argument("--register", metavar="NAME", help="put a teacher into MLflow's model registry (again)")
    task.add_argument("--json", action="store_true", help="--list as JSON")
    teacher = parser.add_argument_group("the teacher")
    teacher.add_argument("--network", metavar="NAME", help="wrn_28_10, timm:NAME, path/to/file.py:function ...")
    teacher.add_argument("--width", type=float, metavar="W", help="short for --set network.width=W (1: as published)")
    teacher.add_argument("--data", metavar="SET", default="digits", help="digits (default), cifar10, parquet:DIR, ...")
    teacher.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    teacher.add_argument("--epochs", type=int, help="short for --set train.epochs=N")
    teacher.add_argument("--set", action="append", default=[], metavar="A.B=VALUE",
                         help="a field of train, network, data or method, as in a space")  # fmt: skip
    teacher.add_argument("--seed", type=int, default=0, help="seed of weights, augmentation and order (0)")
    host = parser.add_argument_group("where it runs")
    host.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    host.add_argument(
        "--teachers", type=Path, metavar="DIR", default=DEFAULT_TEACHERS, help="folder of teachers (teachers/)"
    )
    host.add_argument("--tracking-uri", metavar="URI", help="an MLflow server (default: SQLite beside the teachers)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    config = TeacherConfig(**vars(make_parser().parse_args(arguments)))
    install_signal_handlers()
    return run_command(lambda: _report_divergence(config), INTERRUPTED_MESSAGE)


def _report_divergence(config: TeacherConfig) -> int:
    from lowrank.training import DivergedError  # brings torch, for which --help does not wait

    try:
        return dispatch(config)
    except DivergedError as error:
        return report_error(ExitCode.FAILED, f"diverged: {error}; try a lower --set train.lr=...")


def dispatch(config: TeacherConfig) -> int:
    """List the teachers, register one, or train one.

    Args:
        config: the command line.

    Returns:
        The exit code.

    Raises:
        InputError: the command line, data or a teacher cannot be used.
        DivergedError: the training has diverged.
    """
    from sweeps.records import check_studies_folder
    from sweeps.teachers import read_teacher, register_or_explain
    from sweeps.tracking import check_tracking_uri, environment_uri

    _check_options(config)
    if config.list:
        return print_teachers(config.teachers, as_json=config.json)
    root = check_studies_folder(config.teachers)
    if config.tracking_uri is None:
        config = replace(config, tracking_uri=environment_uri())
    else:
        check_tracking_uri(config.tracking_uri)
    if not config.register:
        return _train(config, root)
    read_teacher(root, config.register)
    register_or_explain(root, config.register, config.tracking_uri)
    return ExitCode.DONE


def _check_options(config: TeacherConfig) -> None:
    """Check that every option that was typed counts for what the command is to do."""
    defaults = vars(make_parser().parse_args([]))
    given = [name for name, value in vars(config).items() if value != defaults[name]]
    task = next((name for name in OPTIONS_OF_TASK if name in given), None)
    for name in given:
        flag = f"--{name.replace('_', '-')}"
        if task is None and name == "json":
            raise InputError("--json cannot be used without --list; leave it out")
        if task is not None and name not in OPTIONS_OF_TASK[task]:
            raise InputError(f"{flag} cannot be used with --{task}; leave it out")


def _train(config: TeacherConfig, root: Path) -> int:
    from lowrank.data import load_data
    from lowrank.distillation import WEIGHTS_FILE
    from sweeps.teachers import name_taken_error, register_or_explain, train_with_progress

    for flag in ("name", "network"):
        if not getattr(config, flag):
            raise InputError(f"--{flag} is missing; for example --network wrn_16_4 --data digits --name digits_wrn164")
    name = str(config.name)
    check_plain_name(name, "--name")
    if (root / name).exists():
        raise name_taken_error(root, name)
    space, device = space_of_teacher(config), _choose_device(config.device)
    data = load_data(space.data, config.data_dir)
    for note in data.notes:
        print(f"note on the data: {note}", flush=True)
    train_with_progress(space, data, root, name, device)
    print(f"use it with `teacher: {name}` in a space, or as `--weights {root / name / WEIGHTS_FILE}`")
    register_or_explain(root, name, config.tracking_uri)
    return ExitCode.DONE


def space_of_teacher(config: TeacherConfig) -> Space:
    """Make a space of one point from the command line.

    Args:
        config: the command line.

    Returns:
        The space.

    Raises:
        InputError: a field cannot be used.
    """
    from sweeps.space import apply_overrides, parse_teacher_space, with_absolute_data, with_absolute_network

    content: dict[str, object] = {
        "question": "A teacher", "data": {"name": config.data}, "network": {"name": config.network},
        "method": {"name": "dense"}, "search": {"seed": config.seed, "stop": "none"},
    }  # fmt: skip
    epochs = [f"train.epochs={config.epochs}"] if config.epochs is not None else []
    width = [f"network.width={config.width}"] if config.width is not None else []
    apply_overrides(content, [*config.set, *width, *epochs])
    return parse_teacher_space(str(config.name), with_absolute_network(with_absolute_data(content)))


def _choose_device(device: str) -> str:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU, and none is visible here; choose from: auto, cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def print_teachers(root: Path, *, as_json: bool) -> int:
    """Print every teacher with its network, size, data and errors.

    Args:
        root: the folder of teachers.
        as_json: print JSON instead of lines.

    Returns:
        The exit code.

    Raises:
        InputError: a teacher's record is damaged.
    """
    from lowrank.distillation import teacher_names
    from sweeps.teachers import read_teacher

    records = [read_teacher(root, name) for name in teacher_names(root)]
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))
        return ExitCode.DONE
    rows = [(record.name, str(record.network["name"]), str(record.data["name"])) for record in records]
    name_width, network_width, data_width = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    for record, (name, network, data) in zip(records, rows, strict=True):
        print(
            f"{name:{name_width}}  {network:{network_width}} {record.params:>12,} parameters  {data:{data_width}}  "
            f"validation {record.val_error:.2f} %, test {record.test_error:.2f} %"
        )
    if not records:
        print(f"no teachers in {root}; python sweeps/teacher.py --network wrn_16_4 --name NAME trains one")
    return ExitCode.DONE


def entry_point() -> NoReturn:
    """Run the command of an installed package, and end the process."""
    exit_process(main())


if __name__ == "__main__":
    entry_point()
