"""Make a trained network smaller: `python -m lowrank.compress --network NAME --weights FILE --data SET --out DIR`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import InputError, unknown
from lowrank.networks import add_network_options, network_from_options
from lowrank.utils import (
    OneLineParser,
    absolute_path,
    check_output_folder,
    redact_arguments,
    results_alone,
    run_command,
    validate_model,
)

if TYPE_CHECKING:
    from lowrank.deployment import CompressConfig

METHODS = ("auto", "svd", "spatial_svd", "tucker2", "cp_kernel", "tensor_train_kernel")
PUBLISHED, NETWORK_WEIGHTS = "DEFAULT", "network"  # instead of a file of weights
ALLOCATIONS = ("auto", "energy", "sensitivity")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser; its `--help` needs no torch.
    """
    parser = OneLineParser(
        prog="python -m lowrank.compress",
        description="Make a trained network smaller, without training or with a short one.",
        epilog="Exit codes: 0 done, 1 a form could not be written, 2 bad input, 130 interrupted (nothing is written).",
    )  # fmt: skip
    what = parser.add_argument_group("the network and its images")
    add_network_options(what)
    what.add_argument(
        "--weights", required=True, metavar="FILE",
        help=f"its trained weights; {PUBLISHED}: those of a torchvision, timm or hf network; {NETWORK_WEIGHTS}: those "
        "that your own function returns",
    )  # fmt: skip
    what.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="of the network or the data, such as network.stem=small, data.channels=3",
    )  # fmt: skip
    what.add_argument(
        "--data", required=True, metavar="SET", help="digits, cifar10, parquet:DIR, folder:DIR, csv:DIR ..."
    )
    what.add_argument("--data-dir", type=Path, metavar="DIR", help="where data sets lie")
    expected = parser.add_argument_group("what the weights expect of an image, where no file beside them says it")
    expected.add_argument("--mean", type=float, nargs="+", metavar="X", help="mean of each channel (pixels 0 to 1)")
    expected.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation of each channel")
    expected.add_argument("--image-size", type=int, metavar="N", help="side of the square that the network gets")
    expected.add_argument("--crop", type=float, metavar="SHARE", help="middle square, as a share of the shorter side")
    expected.add_argument("--class-names", type=Path, metavar="FILE", help="names in the order of the outputs")
    size = parser.add_argument_group("how small")
    limits = size.add_mutually_exclusive_group()
    limits.add_argument(
        "--budget", nargs="+", default=["0.5"], metavar="SHARE",
        help="share of parameters that may remain (0.5), or params=0.5,mult_adds=0.6; several make one network each",
    )  # fmt: skip
    limits.add_argument(
        "--max-loss",
        type=float,
        metavar="POINTS",
        help="smallest network whose error on the images that choose rises by at most so many percentage points",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--method", default="auto", metavar="NAME", help=", ".join(METHODS))
    how.add_argument("--allocation", default="auto", metavar="NAME", help=", ".join(ALLOCATIONS))
    how.add_argument("--calibration", type=int, default=1024, metavar="N", help="training images to fit the factors to")
    how.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="epochs of training afterwards (0)")
    how.add_argument(
        "--labels-only", action="store_true", help="train on labels only, not on the network's predictions"
    )
    how.add_argument("--report-on", choices=("val", "test"), default="val", help="the split whose errors are printed")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the calibration images and the training (0)")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    out = parser.add_argument_group("what is written")
    out.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    out.add_argument("--opset", type=int, metavar="N", help="of the ONNX files, 17 to 23 (default: 18)")
    out.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    out.add_argument(
        "--json", action="store_true", help="print JSON and no table: one object, a list for several budgets"
    )
    return parser


def parse_budget(text: str) -> dict[str, float]:
    """Read a budget such as `0.5` or `params=0.5,mult_adds=0.6`.

    Args:
        text: as typed.

    Returns:
        Shares in (0, 1] by what they limit.

    Raises:
        InputError: it is neither.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, found, number = part.rpartition("=")
        name = name.strip() if found else "params"
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if name not in ("params", "mult_adds") or not 0 < share <= 1 or name in limits:
            raise InputError(
                f"--budget must be a share in (0, 1] such as 0.5, or params=0.5,mult_adds=0.6, but got {text!r}"
            )
        limits[name] = share
    return limits


def parse_fields(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read fields of the network and of the data such as `network.stem=small`.

    Args:
        texts: as typed.

    Returns:
        Values by field of `network` and of `data`, as typed; the settings of either check them.

    Raises:
        InputError: a text has another form.
    """
    fields: dict[str, dict[str, str]] = {"network": {}, "data": {}}
    for text in texts:
        name, equals, value = text.partition("=")
        section, dot, field = name.partition(".")
        if section not in fields or not (dot and equals and field) or name == "data.name":
            raise InputError(
                f"--set must be network.FIELD=VALUE or data.FIELD=VALUE, such as network.stem=small, but got {text!r}"
            )
        fields[section][field] = value
    return fields


def parse_config(arguments: list[str] | None = None) -> CompressConfig:
    """Read and check the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The typed configuration.

    Raises:
        InputError: a value is not allowed.
    """
    options = make_parser().parse_args(arguments)
    words = redact_arguments(sys.argv[1:] if arguments is None else arguments)
    budgets = tuple(parse_budget(text) for text in options.budget)
    for place, budget in enumerate(budgets):
        if budget in budgets[:place]:
            raise InputError(f"--budget must name each size once, but got {options.budget[place]!r} twice")
    for flag, least in (("calibration", 8), ("finetune", 0)):
        if getattr(options, flag) < least:
            raise InputError(f"--{flag} must be at least {least}, but got {getattr(options, flag)}")
    if options.max_loss is not None and not 0 <= options.max_loss < 100:
        raise InputError(f"--max-loss must be a number of points in [0, 100), but got {options.max_loss:g}")
    for flag, choices in (("method", METHODS), ("allocation", ALLOCATIONS)):
        if getattr(options, flag) not in choices:
            raise unknown(flag, getattr(options, flag), choices)
    weights, fields = None, parse_fields(options.set)
    if options.weights == PUBLISHED:
        fields["network"].setdefault("weights", PUBLISHED)
    elif options.weights != NETWORK_WEIGHTS:
        absolute_path(options.weights, "--weights")
        weights = Path(options.weights).expanduser()
        if not weights.exists():
            raise InputError(
                f"--weights must be a file, {PUBLISHED} or {NETWORK_WEIGHTS}, but there is no file {weights}"
            )
    out = absolute_path(options.out, "--out")
    if out.exists() and not options.overwrite:
        raise InputError(f"{out} exists already; give another --out or --overwrite")
    from lowrank.data import DataSettings
    from lowrank.deployment import RUN_FILE, CompressConfig, check_opset

    check_output_folder(out, RUN_FILE, "one of an earlier run")
    for flag, file in (("weights", weights), ("class-names", options.class_names)):
        if file is not None and absolute_path(file, f"--{flag}").is_relative_to(out):
            raise InputError(f"--{flag} {file} lies in {out}, which --overwrite would remove; give another --out")
    opset = check_opset(options.opset)
    return CompressConfig(
        network=network_from_options(options.network, fields["network"], vars(options)), weights=weights,
        data=validate_model(DataSettings, {**fields["data"], "name": options.data}, "data"),
        data_dir=options.data_dir, preprocessing={
            "mean": tuple(options.mean) if options.mean else None, "std": tuple(options.std) if options.std else None,
            "image_size": options.image_size, "crop": options.crop,
        }, class_names=options.class_names, budgets=budgets, max_loss=options.max_loss, method=options.method,
        allocation=options.allocation, calibration=options.calibration, finetune=options.finetune,
        labels_only=options.labels_only, keep=tuple(options.keep), only=tuple(options.only) if options.only else None,
        report_on=options.report_on, seed=options.seed, device=options.device, out=out, opset=opset,
        overwrite=options.overwrite, as_json=options.json, command=f"python -m lowrank.compress {shlex.join(words)}",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code.
    """

    def command() -> int:
        config = parse_config(arguments)
        from lowrank.deployment import run_compress

        with results_alone(alone=config.as_json):
            return run_compress(config)

    return run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
