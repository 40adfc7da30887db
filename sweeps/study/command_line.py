"""The parser of `sweeps/run.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import OneLineParser, absolute_path
from sweeps.space import AUTO, DEFAULT_OUT, GPU_SHARING, RunOptions
from sweeps.utils import PROCESS_START, monotonic_time


def parse_options(arguments: Sequence[str] | None = None) -> RunOptions:
    """Parse the command line.

    Invalid options print one line and end the process with exit code 2.

    Args:
        arguments: the command line; None for that of the process.

    Returns:
        The options.
    """
    began = PROCESS_START if arguments is None else monotonic_time()
    return RunOptions(**vars(make_parser().parse_args(arguments)), began=began)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; the `dest` of each option is a field of `RunOptions`."""
    parser = OneLineParser(
        prog="python sweeps/run.py",
        description="Train the trials of a search space and show the best network of each size.",
        epilog="Spaces lie in search_spaces/ (--list). "
        "Exit codes: 0 done, 1 no trial was completed, 2 bad input, 3 disk full, 4 cluster gone, "
        "5 done but not all is in the storage, 6 another driver has taken the study over, 130 interrupted.",
    )
    task = parser.add_argument_group("what to do")
    task.add_argument("--space", metavar="NAME", help="a space by name, or a YAML file")
    task.add_argument("--list", action="store_true", help="list the spaces, each with the question that it answers")
    task.add_argument("--plan", action="store_true", help="show sizes, mult-adds and time of the study; train nothing")
    task.add_argument(
        "--probe-memory", action="store_true", help="measure memory, speed and largest batch of each configuration"
    )
    task.add_argument("--resume", metavar="NAME", help="continue a study or a series where it stopped")
    task.add_argument(
        "--test", action="store_true", help="with --resume: evaluate the front on the test split once more (counted)"
    )
    task.add_argument(
        "--repeat-more", type=int, metavar="N", help="with --resume: N more seeds for each point of the front"
    )
    task.add_argument(
        "--reproduce", nargs=2, metavar=("STUDY", "TRIAL"), help="train a recorded trial again and compare the results"
    )
    task.add_argument(
        "--retrain-stopped",
        metavar="STUDY",
        help="train trials that were stopped early to their end: did the front lose a point?",
    )
    task.add_argument("--sample", type=int, metavar="N", help="draw N trials for --retrain-stopped, by --seed (10)")
    task.add_argument("--json", action="store_true", help="print --list, --plan and --probe-memory as JSON")
    study = parser.add_argument_group("the study")
    study.add_argument("--data", metavar="SET", help="digits, cifar10, cifar100, fashion_mnist, parquet:DIR, ...")
    study.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    study.add_argument(
        "--network",
        metavar="NAME",
        help="resnet9, torchvision:NAME, timm:NAME, hf:FOLDER, path/to/file.py:function, ...",
    )
    study.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers that stay as they are, e.g. 'layer4.*'"
    )
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="replace these layers only, e.g. '*.mlp.*'",
    )
    study.add_argument(
        "--weights", type=_absolute_path, metavar="FILE", help="trained weights of the network, from which trials start"
    )
    study.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field of the space")
    study.add_argument("--name", help="name of the study (default: that of the space)")
    study.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="folder of studies (studies/)")
    study.add_argument("--seed", type=int, help="seed of the search, of weights, augmentation and order")
    study.add_argument("--trials", type=int, help="number of trials of the search, without references")
    study.add_argument("--time", metavar="30m", help="stop after this time (s, m, h); --resume continues")
    study.add_argument("--profile", action="store_true", help="print at the end what the time was spent on")
    study.add_argument("--note", metavar="TEXT", help="a remark to keep with the study and show in MLflow")
    study.add_argument("--tag", action="append", default=[], metavar="K=V", help="a tag for every run in MLflow")
    study.add_argument(
        "--group", metavar="NAME", help="the studies that this one belongs to: a chapter of the log, a tag in MLflow"
    )
    study.add_argument("--allow-code", action="store_true", help="let the space run code: a network that is a function")
    host = parser.add_argument_group("where it runs")
    host.add_argument(
        "--gpus-per-trial", type=_gpu_share, metavar="SHARE",
        help="e.g. 0.25: four trials on a card; 4: four cards for each trial; auto: the fastest share, measured",
    )  # fmt: skip
    host.add_argument(
        "--gpu-sharing", dest="sharing", choices=GPU_SHARING,
        help="trials on one card run in turns (processes) or at once by NVIDIA MPS (mps); auto: in turns, except with "
        "--gpus-per-trial auto",
    )  # fmt: skip
    host.add_argument("--cpus-per-trial", type=float, metavar="N", help="number of CPUs for each trial")
    host.add_argument(
        "--processes-per-trial",
        type=int,
        metavar="N",
        help="number of processes that divide each batch of a trial (default: one for each card)",
    )
    host.add_argument("--max-concurrent", type=int, metavar="N", help="the most trials to run at once")
    host.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster (auto: the one on this machine)")
    host.add_argument(
        "--allow-open-ports", action="store_true", help="start Ray without a token where RAY_AUTH_MODE=disabled says so"
    )
    host.add_argument(
        "--storage",
        metavar="PLACE",
        help="where studies outlive the machines: a path on a shared disk, or s3://BUCKET/PREFIX",
    )
    host.add_argument("--teachers", type=Path, metavar="DIR", help="folder of teachers (teachers/)")
    host.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="folder of teacher caches; a fast local disk is best"
    )
    host.add_argument("--tracking-uri", metavar="URI", help="an MLflow server (default: SQLite in the study)")
    return parser


def _absolute_path(text: str) -> str:
    try:
        return str(absolute_path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpu_share(text: str) -> float | str:
    try:
        return text if text == AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number from 0, or auto, but got {text!r}") from error
