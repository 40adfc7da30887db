"""`python sweeps/run.py --space tt_dims`: one command from a search space to a Pareto front."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `python sweeps/run.py` puts sweeps/ first on the module path; the project is imported as packages only.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from lowrank.errors import InputError
from lowrank.utils.cli import ExitCode, OneLineParser, report_error, run_command
from sweeps.records.journal import FullDiskError
from sweeps.space.files import available_spaces, find_space, read_yaml
from sweeps.space.model import Space
from sweeps.space.parse import read_space
from sweeps.space.settings import AUTO, SHARING
from sweeps.space.trust import check_options
from sweeps.utils.clock import PROCESS_START, monotonic_time
from sweeps.utils.signals import exit_process, install_signal_handlers

GO_ON = "interrupted; a study that had begun goes on with --resume NAME"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python sweeps/run.py",
        description="Train what a search space proposes and show what is best at which size.",
        epilog="Spaces lie in search_spaces/ (--list). "
        "Exit codes: 0 done, 1 no trial was completed, 2 bad input, 3 disk full, 4 cluster gone, "
        "130 interrupted.",
    )
    what = parser.add_argument_group("what to do")
    what.add_argument("--space", metavar="NAME", help="a space by name, or a YAML file")
    what.add_argument("--list", action="store_true", help="the spaces, each with its question")
    what.add_argument("--plan", action="store_true", help="sizes, work and time of the study; trains nothing")
    what.add_argument(
        "--probe-memory", action="store_true", help="memory, speed and largest batch of each configuration"
    )
    what.add_argument("--resume", metavar="NAME", help="go on with a study where it stopped")
    what.add_argument(
        "--reproduce", nargs=2, metavar=("STUDY", "TRIAL"), help="train a recorded trial once more: the same outcome?"
    )
    what.add_argument(
        "--retrain-stopped", metavar="STUDY", help="train trials that it stopped early to their end: a point lost?"
    )
    what.add_argument("--sample", type=int, default=10, metavar="N", help="how many of them, by --seed (default: 10)")
    what.add_argument("--json", action="store_true", help="--list, --plan and --probe-memory as JSON")
    study = parser.add_argument_group("the study")
    study.add_argument("--data", metavar="SET", help="digits, cifar10, cifar100, fashion_mnist, parquet:DIR, ...")
    study.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    study.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field of the space")
    study.add_argument("--name", help="name of the study (default: that of the space)")
    study.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="folder of studies (studies/)")
    study.add_argument("--seed", type=int, help="seed of the search, of weights, views and order")
    study.add_argument("--trials", type=int, help="how many trials are searched, references not counted")
    study.add_argument("--time", metavar="30m", help="stop after so much time (s, m, h); --resume goes on")
    study.add_argument("--profile", action="store_true", help="say at the end where the time went")
    study.add_argument("--note", metavar="TEXT", help="a remark, kept with the study and shown in MLflow")
    study.add_argument("--tag", action="append", default=[], metavar="K=V", help="a tag of your own, on every run")
    study.add_argument("--allow-code", action="store_true", help="let the space name code: package.module:function")
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--gpus-per-trial", type=_share, metavar="SHARE",
        help="e.g. 0.25: four trials on a card; 4: four cards for each trial; auto: measured",
    )  # fmt: skip
    where.add_argument(
        "--gpu-sharing", dest="sharing", choices=SHARING,
        help="how trials share a card: its time in turns, NVIDIA's service, the better",
    )  # fmt: skip
    where.add_argument("--cpus-per-trial", type=float, metavar="N")
    where.add_argument(
        "--processes-per-trial", type=int, metavar="N", help="processes that share each batch of a trial (one a card)"
    )
    where.add_argument("--max-concurrent", type=int, metavar="N", help="at most so many trials at once")
    where.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster (auto: the one on this machine)")
    where.add_argument(
        "--storage", metavar="PLACE", help="what outlives the machines: a path that all share, or s3://BUCKET/PREFIX"
    )
    where.add_argument("--teachers", type=Path, metavar="DIR", help="folder of teachers (teachers/)")
    where.add_argument("--cache-dir", type=Path, metavar="DIR", help="teacher caches; a fast local disk is best")
    where.add_argument("--tracking-uri", metavar="URI", help="an MLflow server (default: SQLite in the study)")
    return parser


def _share(text: str) -> float | str:
    try:
        return text if text == AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number from 0, or auto, but got {text!r}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    options.began = PROCESS_START if arguments is None else monotonic_time()
    install_signal_handlers()
    return run_command(lambda: _with_room(options), GO_ON)


def _with_room(options: argparse.Namespace) -> int:
    try:
        return _dispatch(options)
    except FullDiskError as error:
        return report_error(ExitCode.DISK_FULL, f"error: {error}; make room and go on with --resume {error.study}")


def _dispatch(options: argparse.Namespace) -> int:
    if options.list:
        return list_spaces(options.json)
    # Optuna is paid for only by what needs it
    from sweeps.study.driver import start_study
    from sweeps.study.series import is_series, start_series

    if options.resume or options.reproduce or options.retrain_stopped:
        return _on_record(options)
    if not options.space:
        raise InputError(f"--space is missing; choose from: {', '.join(available_spaces())}")
    if is_series(options.space) and not (options.plan or options.probe_memory):
        return start_series(options)
    if options.plan:
        return _of_each(_plan, options)
    if options.probe_memory:
        from sweeps.resources.memory_probe import probe_space

        return _of_each(probe_space, options)
    space = _space(options)
    return start_study(space, options)


def _on_record(options: argparse.Namespace) -> int:
    """Go on with a study or a series, or train recorded trials again."""
    from sweeps.study.driver import resume_study, start_again
    from sweeps.study.series import is_resumable_series, resume_series

    if options.reproduce or options.retrain_stopped:
        return start_again(options)
    return resume_series(options) if is_resumable_series(options) else resume_study(options)


def _space(options: argparse.Namespace) -> Space:
    space = read_space(
        options.space, options.set, data__name=options.data, search__seed=options.seed,
        search__trials=options.trials, search__time=options.time, resources__gpus_per_trial=options.gpus_per_trial,
        resources__cpus_per_trial=options.cpus_per_trial, resources__max_concurrent=options.max_concurrent,
        resources__processes_per_trial=options.processes_per_trial, resources__sharing=options.sharing,
    )  # fmt: skip
    check_options(space, options)
    return space


def list_spaces(as_json: bool) -> int:
    """Print every space with its question."""
    questions = {
        name: " ".join(str(read_yaml(path).get("question")).split()) for name, path in available_spaces().items()
    }
    if as_json:
        print(json.dumps([{"name": name, "question": question} for name, question in questions.items()], indent=2))
    else:
        for name, question in questions.items():
            print(f"{name:14} {question}")
    return 0


def _of_each(work: Callable[[Space, argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Do `work` for a space, or for every study of a series; returns the largest exit code."""
    from sweeps.study.series import is_series, read_series

    if not is_series(options.space):
        return work(_space(options), options)
    path = find_space(options.space)
    codes = []
    for member in read_series(read_yaml(path), path.stem, options):
        if not options.json:
            print(f"\nstudy {member.name}")
        codes.append(work(member.space, argparse.Namespace(**{**vars(options), "name": member.name})))
    return max(codes)


def _plan(space: Space, options: argparse.Namespace) -> int:
    from lowrank.data import load_data
    from sweeps.study.plan_report import make_plan, plan_lines
    from sweeps.trials.planned_teacher import describe_teacher
    from sweeps.trials.resolver import Resolver

    data: Any = load_data(space.data, options.data_dir)
    resolver = Resolver(space, data, describe_teacher(space, data, options.teachers or Path("teachers")))
    plan = make_plan(space, resolver, _local_slots(space))
    print(json.dumps(plan.to_json(), indent=2) if options.json else "\n".join(plan_lines(plan, space, resolver)))
    return 0


def _local_slots(space: Space) -> int:
    import os

    import torch

    from sweeps.resources.shares import Cluster, share_for

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    return share_for(space.resources, Cluster(cpus, gpus, cpus, gpus), space.search.trials, False).concurrent


if __name__ == "__main__":
    exit_process(main())
