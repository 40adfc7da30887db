"""`python -m benchmarks NAME`: run one of `BENCHMARKS`, or all; print tables and write JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement, Options, environment, header, load, show
from lowrank.utils import OneLineParser

BENCHMARKS = {
    "turnaround": "benchmarks.studies.turnaround",
    "logging": "benchmarks.studies.logging_cost",
    "batches": "benchmarks.training.batches",
    "steps": "benchmarks.training.steps",
    "teacher": "benchmarks.training.teacher",
    "layers": "benchmarks.layers.one_by_one",
    "latency": "benchmarks.layers.latency",
    "engine": "benchmarks.training.engine",
    "plain_tune": "benchmarks.studies.plain_tune",
    "counting": "benchmarks.search.counting",
    "report": "benchmarks.studies.report",
    "log": "benchmarks.studies.log",
    "proposals": "benchmarks.search.proposals",
    "search": "benchmarks.search.samplers",
    "placement": "benchmarks.studies.gpu_packing",
    "scale": "benchmarks.studies.scale",
    "calibration": "benchmarks.calibration",
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks", description="Measure; nothing is asserted.")
    parser.add_argument("what", nargs="?", default="all", choices=[*BENCHMARKS, "all"], help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    parser.add_argument("--quick", action="store_true", help="the smallest form, to see that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, metavar="N", help="how often each thing is timed (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch (default: 1, as a trial has)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="Parquet images of CIFAR's shape, for `batches`")
    engine = parser.add_argument_group("for `engine`, `latency` and `plain_tune`: which rows; all without")
    engine.add_argument("--network", action="append", default=[], metavar="NAME", help="resnet9 or wrn_28_10")
    engine.add_argument("--way", action="append", default=[], metavar="HOW", help="compiled, torch, loader ...")
    engine.add_argument("--gpu-sharing", dest="sharing", action="append", default=[], choices=("processes", "mps"))
    engine.add_argument("--seconds", type=float, metavar="N", help="when all must be over")
    return parser


def measure(name: str, options: Options) -> tuple[dict[str, Any], bool]:
    """Run one benchmark and print its record; give the record as plain data, and whether it worked."""
    around = environment()
    try:
        record: Measurement = importlib.import_module(BENCHMARKS[name]).run(options)
    except Exception as error:  # the other benchmarks go on; the reason is printed and recorded
        traceback.print_exc()
        return {"name": name, "environment": around, "error": f"{type(error).__name__}: {error}"}, False
    after = load()
    show(record, header(around, record.settings, after))
    return {**record.to_json(), "environment": {**around, "load_after": after}}, True


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark or all.

    Args:
        arguments: of the command line; None takes sys.argv.

    Returns:
        1 if a benchmark failed, else 0.
    """
    args = make_parser().parse_args(arguments)
    options = Options(
        quick=args.quick, device=args.device, seed=args.seed, repeats=args.repeats, threads=args.threads,
        images=args.images, networks=tuple(args.network), ways=tuple(args.way), sharing=tuple(args.sharing),
        seconds=args.seconds,
    )  # fmt: skip
    names = list(BENCHMARKS) if args.what == "all" else [args.what]
    records, worked = zip(*(measure(name, options) for name in names), strict=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(list(records), indent=1) + "\n")
    return 0 if all(worked) else 1


if __name__ == "__main__":
    sys.exit(main())
