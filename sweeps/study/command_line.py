"""The parser of `sweeps/run.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lowrank.utils import OneLineParser
from sweeps.space import AUTO, GPU_SHARING, RunOptions
from sweeps.utils import PROCESS_START, monotonic_time


def parse_options(arguments: Sequence[str] | None = None) -> RunOptions:
    """Parse the command line.

    A mistake ends the process with one line and exit code 2.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        The options.
    """
    began = PROCESS_START if arguments is None else monotonic_time()
    return RunOptions(**vars(make_parser().parse_args(arguments)), began=began)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; its destinations are the fields of `RunOptions`."""
    parser = OneLineParser(
        prog="python sweeps/run.py",
        description="Train what a search space proposes and show what is best at which size.",
        epilog="Spaces lie in search_spaces/ (--list). "
        "Exit codes: 0 done, 1 no trial was completed, 2 bad input, 3 disk full, 4 cluster gone, "
        "130 interrupted.",
    )
    task = parser.add_argument_group("what to do")
    task.add_argument("--space", metavar="NAME", help="a space by name, or a YAML file")
    task.add_argument("--list", action="store_true", help="the spaces, each with its question")
    task.add_argument("--plan", action="store_true", help="sizes, work and time of the study; trains nothing")
    task.add_argument(
        "--probe-memory", action="store_true", help="memory, speed and largest batch of each configuration"
    )
    task.add_argument("--resume", metavar="NAME", help="go on with a study where it stopped")
    task.add_argument(
        "--reproduce", nargs=2, metavar=("STUDY", "TRIAL"), help="train a recorded trial again: the same result?"
    )
    task.add_argument(
        "--retrain-stopped", metavar="STUDY", help="train trials that it stopped early to their end: a point lost?"
    )
    task.add_argument("--sample", type=int, default=10, metavar="N", help="how many of them, by --seed (default: 10)")
    task.add_argument("--json", action="store_true", help="--list, --plan and --probe-memory as JSON")
    study = parser.add_argument_group("the study")
    study.add_argument("--data", metavar="SET", help="digits, cifar10, cifar100, fashion_mnist, parquet:DIR, ...")
    study.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets are found or downloaded to")
    study.add_argument("--network", metavar="NAME", help="resnet9, torchvision:resnet18, package.module:function, ...")
    study.add_argument(
        "--weights", type=_absolute_path, metavar="FILE", help="trained weights of the network, which trials start from"
    )
    study.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a field of the space")
    study.add_argument("--name", help="name of the study (default: that of the space)")
    study.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="folder of studies (studies/)")
    study.add_argument("--seed", type=int, help="seed of the search, of weights, augmentation and order")
    study.add_argument("--trials", type=int, help="how many trials are searched, references not counted")
    study.add_argument("--time", metavar="30m", help="stop after so much time (s, m, h); --resume goes on")
    study.add_argument("--profile", action="store_true", help="say at the end where the time went")
    study.add_argument("--note", metavar="TEXT", help="a remark, kept with the study and shown in MLflow")
    study.add_argument("--tag", action="append", default=[], metavar="K=V", help="a tag of your own, on every run")
    study.add_argument("--allow-code", action="store_true", help="let the space name code: package.module:function")
    host = parser.add_argument_group("where it runs")
    host.add_argument(
        "--gpus-per-trial", type=_gpu_share, metavar="SHARE",
        help="e.g. 0.25: four trials on a card; 4: four cards for each trial; auto: measured",
    )  # fmt: skip
    host.add_argument(
        "--gpu-sharing", dest="sharing", choices=GPU_SHARING,
        help="how trials share a card: its time in turns, NVIDIA's service, the better",
    )  # fmt: skip
    host.add_argument("--cpus-per-trial", type=float, metavar="N", help="CPUs that each trial holds")
    host.add_argument(
        "--processes-per-trial", type=int, metavar="N", help="processes that share each batch of a trial (one a card)"
    )
    host.add_argument("--max-concurrent", type=int, metavar="N", help="at most so many trials at once")
    host.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster (auto: the one on this machine)")
    host.add_argument(
        "--storage", metavar="PLACE", help="what outlives the machines: a path that all share, or s3://BUCKET/PREFIX"
    )
    host.add_argument("--teachers", type=Path, metavar="DIR", help="folder of teachers (teachers/)")
    host.add_argument("--cache-dir", type=Path, metavar="DIR", help="teacher caches; a fast local disk is best")
    host.add_argument("--tracking-uri", metavar="URI", help="an MLflow server (default: SQLite in the study)")
    return parser


def _absolute_path(text: str) -> str:
    return str(Path(text).expanduser().resolve())


def _gpu_share(text: str) -> float | str:
    try:
        return text if text == AUTO else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number from 0, or auto, but got {text!r}") from error
