"""The table of docs/background/methods.md: every method on WRN-28-10 nearest to 700,000 parameters.

    python -m benchmarks.layers.methods_table [--write docs/background/methods.md] [--repeats N] [--batch N]

Step time (forward, backward and SGD of the whole network on a CPU) and memory (bytes that autograd saves for the
backward pass, parameters and buffers left out) are measured; everything else is counted. `--write` replaces what
stands between the two markers of the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.layers.one_by_one import WRN_BUDGET, nearest
from benchmarks.measurement import Options, environment, header, interleaved, load, median, shown
from benchmarks.training.steps import CLASSES, Case, make_step, shape_of, sized_methods
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import build_student
from lowrank.layers import Method
from lowrank.layers.registry import METHODS
from lowrank.networks.registry import NetworkSettings
from lowrank.utils import OneLineParser

MARKERS = ("<!-- table: begin -->", "<!-- table: end -->")
COLUMNS = ("method", "settings", "parameters", "gap", "mult-adds, M", "step, ms", "x separable", "saved, MB")
REPEATS = 3


def saved_bytes(case: Case, method: Method, seed: int) -> int:
    """Bytes of the distinct storages that one forward pass saves, parameters, buffers and images left out."""
    network = build_student(case.network, case.plan, method, case.image_shape, CLASSES, seed).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(case.batch_size, *case.image_shape).to(memory_format=torch.channels_last)
    excluded = {value.untyped_storage().data_ptr() for value in (images, *network.parameters(), *network.buffers())}
    kept: list[Tensor] = []  # alive, so that no storage is counted under the address of another

    def save(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
        found = network(images)
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in kept}
    del found
    return sum(size for address, size in storages.items() if address not in excluded)


def settings_of(plan: NetworkPlan, target: int) -> tuple[dict[str, Method], list[str]]:
    """Every method nearest to `target` parameters, and who cannot be, with the reason."""
    return sized_methods(METHODS, lambda method: nearest(plan, method, target))


def rows_of(case: Case, target: int, options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each method, and notes on those that have none."""
    methods, omitted = settings_of(case.plan, target)
    saved = {name: saved_bytes(case, method, options.seed) for name, method in methods.items()}
    steps = {name: make_step(case, method, options) for name, method in methods.items()}
    times = interleaved(steps, options.device, options.repeated(REPEATS))
    rows = []
    for name, method in methods.items():
        params, seconds = case.plan.params(method), median(times[name])
        values = (
            name, shape_of(method), params, params - target, case.plan.mult_adds(method) / 1e6, 1000 * seconds,
            seconds / median(times["separable"]), saved[name] / 1e6,
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows, omitted


def as_markdown(rows: Sequence[dict[str, Any]], notes: Sequence[str], line: str) -> str:
    """The table as the page holds it."""
    aligned = ["---" if column in ("method", "settings") else "---:" for column in COLUMNS]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, aligned)]
    lines += [f"| {' | '.join(shown(row[column]) for column in COLUMNS)} |" for row in rows]
    return "\n".join(
        [*lines, "", *(f"* Left out: {note}" for note in notes), *([""] if notes else []), f"Measured: {line}"]
    )


def written(page: str, table: str) -> str:
    """The page with the table between its markers."""
    before, _, behind = page.partition(MARKERS[0])
    _, end, after = behind.partition(MARKERS[1])
    if not end:
        raise ValueError(f"the page lacks the markers {' and '.join(MARKERS)}")
    return f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.layers.methods_table", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page whose table is replaced")
    parser.add_argument("--network", default="wrn_28_10")
    parser.add_argument("--params", type=int, default=WRN_BUDGET, metavar="N")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    parser.add_argument("--batch", type=int, default=16, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    args = make_parser().parse_args(arguments)
    before, around = torch.get_num_threads(), environment()
    torch.set_num_threads(args.threads)
    options = Options(seed=args.seed, repeats=args.repeats, threads=args.threads)
    network = NetworkSettings(name=args.network)
    case = Case(label=args.network, network=network, image_shape=(3, 32, 32), batch_size=args.batch)
    try:
        rows, notes = rows_of(case, args.params, options)
    finally:
        torch.set_num_threads(before)
    chosen = {key: getattr(args, key) for key in ("network", "seed", "threads", "repeats", "batch")}
    table = as_markdown(rows, notes, header(around, {**chosen, "precision": "float32"}, load()))
    Console(width=200).print(table, highlight=False, markup=False)
    if args.write is not None:
        args.write.write_text(written(args.write.read_text(), table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
