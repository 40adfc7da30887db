"""`python -m benchmarks.zoo`: does every network of torchvision, and one of each family of timm, work here?

For each: count it on the meta device; substitute `dense` for its layers and compare the outputs with the original's;
substitute a small method, run forward and backward, and compare the counts with the parameters that are there. Each
network runs in this process; weights are random. timm is left out where it is not installed.

    python -m benchmarks.zoo --out docs/results/zoo.md
    python -m benchmarks.zoo --only 'timm:vit*' --only torchvision:resnet18
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measurement import processor
from lowrank.compression import NetworkPlan, network_plan
from lowrank.compression.substitution import replace_sites
from lowrank.errors import LowrankError
from lowrank.layers import make_method
from lowrank.networks import NetworkSettings, default_images, make_network
from lowrank.utils import OneLineParser, first_line, prepare_torchvision, torchvision, usable_cores

METHOD = {"name": "svd", "rank_scale": 0.25}
SIZES = (64, 96, 128, 224, 256, 299)  # tried in turn, before the size that a network was published for
BATCH = 2
CLASSES = 10
TOLERANCE = 1e-5  # of the largest output, for the same network with its layers built anew


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one network; `problem` is empty where all went well, `refused` where this library says no."""

    name: str
    side: int = 0
    layers: int = 0
    replaced: int = 0
    dense_params: int = 0
    params: int = 0
    difference: float = 0.0
    seconds: float = 0.0
    refused: str = ""
    problem: str = ""

    @property
    def result(self) -> str:
        """In words."""
        if self.problem:
            return f"WRONG: {self.problem}"
        return f"refused: {self.refused}" if self.refused else "works"


def torchvision_names() -> list[str]:
    """All classifiers of torchvision."""
    models = torchvision.models
    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def timm_names() -> list[str]:
    """The smallest network of each family (module) of timm, by the length of its name where sizes are not known."""
    prepare_torchvision()
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return []
    families: dict[str, list[str]] = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module, exclude_filters=["test_*"])
        if names:
            families[module] = names
    return [f"timm:{min(names, key=_weight)}" for _, names in sorted(families.items())]


_SMALL = (
    "femto",
    "atto",
    "pico",
    "nano",
    "xxt",
    "xxs",
    "tiny",
    "_t_",
    "xt",
    "xs",
    "mini",
    "small",
    "_s",
    "18",
    "26",
    "b0",
)
_LARGE = ("base", "large", "huge", "giant", "xl", "_b", "_l", "_h", "_g", "so150m", "so400m", "101", "152", "enormous")


def _weight(name: str) -> tuple[int, int, str]:
    """Sort small networks first, as far as names tell."""
    small = next((place for place, word in enumerate(_SMALL) if word in name), len(_SMALL))
    return (sum(word in name for word in _LARGE), small, name)


def examine(name: str) -> Row:
    """Try one network.

    Args:
        name: as `--network` takes it.

    Returns:
        What became of it.
    """
    start = time.perf_counter()
    try:
        row = _examine(name)
    except LowrankError as error:
        row = Row(name=name, refused=first_line(error, 160))
    except Exception as error:  # a fault of this library's, which the table shows
        row = Row(name=name, problem=f"{type(error).__name__}: {first_line(error, 160)}")
    return replace(row, seconds=time.perf_counter() - start)


def _examine(name: str) -> Row:
    settings = NetworkSettings(name=name, linear=True)
    plan, image = _plan(settings)
    torch.manual_seed(0)
    network = make_network(settings, image, CLASSES)
    dense_params = sum(value.numel() for value in network.parameters())
    values: dict[str, Any] = {
        "name": name, "side": image[1], "layers": len(plan.sites), "replaced": len(plan.substituted),
        "dense_params": dense_params,
    }  # fmt: skip
    if plan.params(make_method({"name": "dense"})) != dense_params:
        counted = plan.params(make_method({"name": "dense"}))
        return Row(**values, problem=f"{counted:,} parameters are counted, but {dense_params:,} are there")
    if not plan.substituted:
        return Row(**values, refused=plan.nothing_replaced)
    images = torch.randn(BATCH, *image)
    values["difference"] = difference = _difference(network, plan, images)
    if not difference <= TOLERANCE:
        return Row(**values, problem=f"outputs differ by {difference:.1e} with all layers replaced by dense ones")
    method = make_method(METHOD)
    replace_sites(network, plan, method, keep_dense=False)
    values["params"] = params = sum(value.numel() for value in network.parameters())
    if params != plan.params(method):
        return Row(**values, problem=f"{plan.params(method):,} parameters are counted, but {params:,} are there")
    return Row(**values, problem=_train_step(network, images))


def _plan(settings: NetworkSettings) -> tuple[NetworkPlan, tuple[int, int, int]]:
    """Plan at the smallest size that the network takes."""
    (channels, *published), _ = default_images(settings.name)
    sides = sorted({side for side in SIZES if side < published[0]} | {published[0]})
    for side in sides:
        image = (channels, side, side)
        try:
            return network_plan(settings, image, CLASSES), image
        except LowrankError:
            if side == sides[-1]:
                raise
    raise AssertionError("no size")


@torch.no_grad()
def _difference(network: nn.Module, plan: NetworkPlan, images: torch.Tensor) -> float:
    """How far outputs change, relative to the largest, when every layer is built anew with the same weights."""
    expected = network.eval()(images)
    states = {site.name: network.get_submodule(site.name).state_dict() for site in plan.substituted}
    replace_sites(network, plan, make_method({"name": "dense"}), keep_dense=False)
    for name, state in states.items():
        network.get_submodule(name).load_state_dict(state)
    outputs = network.eval()(images)
    return float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _train_step(network: nn.Module, images: torch.Tensor) -> str:
    """Run forward and backward in training; say what is wrong, or ""."""
    logits = network.train()(images)
    if logits.shape != (len(images), CLASSES):
        return f"outputs of shape {tuple(logits.shape)}"
    nn.functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64)).backward()
    if not bool(torch.isfinite(logits).all()):
        return "outputs that are not finite"
    without = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    factors = [name for name in without if ".factor" in name]
    return f"no gradient for {factors[0]}" if factors else ""


def table(rows: Sequence[Row]) -> list[str]:
    """Write the rows as Markdown."""
    lines = ["| network | image | layers | replaced | parameters | with svd 0.25 | difference | result |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for row in rows:
        counts = [row.side, row.layers, row.replaced, row.dense_params, row.params]
        cells = [row.name, *(f"{count:,}" if count else "" for count in counts)]
        cells += [f"{row.difference:.0e}" if row.replaced else "", row.result]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    """Say how many work, for each library."""
    lines = []
    for library in ("torchvision", "timm"):
        of_library = [row for row in rows if row.name.startswith(f"{library}:")]
        if of_library:
            works = sum(row.result == "works" for row in of_library)
            refused, wrong = sum(bool(row.refused) for row in of_library), sum(bool(row.problem) for row in of_library)
            lines.append(
                f"* {library}: {works} of {len(of_library)} work ({works / len(of_library):.1%}), "
                f"{refused} refused, {wrong} wrong"
            )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Try the networks and print the table.

    Args:
        arguments: of the command line; None takes sys.argv.

    Returns:
        1 if a network is wrong, else 0.
    """
    parser = OneLineParser(prog="python -m benchmarks.zoo", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names to try, e.g. 'timm:vit*'")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page too")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of torch (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    names = [*torchvision_names(), *timm_names()]
    if options.only:
        names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in options.only)]
    rows = []
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()):  # some builders print
            rows.append(examine(name))
        row = rows[-1]
        print(f"{name}: {row.result} ({row.seconds:.1f} s)", file=sys.stderr, flush=True)
        network_plan.cache_clear()
        gc.collect()
    lines = [*summary(rows), "", *table(rows)]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join([*_heading(options), *lines]) + "\n")
    return 1 if any(row.problem for row in rows) else 0


def _heading(options: argparse.Namespace) -> list[str]:
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision", "timm"))
    command = " ".join(["python -m benchmarks.zoo", *(f"--only '{pattern}'" for pattern in options.only or ())])
    return [
        "# Networks of torchvision and timm", "",
        f"`{command} --out {options.out}`, {time.strftime('%Y-%m-%d')}, {processor()} ({usable_cores()} cores), "
        f"{versions}, Python {sys.version.split()[0]}. Random weights (seed 0), {BATCH} random images of the smallest "
        f"size that the network takes, {CLASSES} classes, linear maps replaced too.", "",
        "Each network is counted, its layers are built anew with the same weights (`dense`) and the outputs "
        "compared (\"difference\", relative to the largest output), then `svd` at a quarter of the rank takes their "
        "places: the counted parameters must equal those of the built network, and forward and backward run in "
        "training. Of timm one small network of each module is taken.", "",
    ]  # fmt: skip


def _version(package: str) -> str:
    module = sys.modules.get(package)
    return str(module.__version__) if module is not None else "absent"


if __name__ == "__main__":
    sys.exit(main())
