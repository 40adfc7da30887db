"""Latency of one image on CPU cores: every method, factorised and merged, PyTorch and ONNX Runtime, beside dense.

    python -m benchmarks latency [--network resnet9] [--threads 1] [--seconds 240] [--json FILE]

When is a smaller network a faster one? Each method is sized nearest to a share of the separable network's parameters.
`factors` runs the structured layers as they are, weights rebuilt for every image where a layer rebuilds them; `merged`
runs the plain layers that they equal; ORT is ONNX Runtime. Networks whose merged layers have the same shapes are timed
once. All contestants of a share take turns, so that a busy moment meets all alike; a time is the median of the turns.

Without `onnxruntime` two columns stay empty. What there is no time for is left out, and a note says so.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers.one_by_one import nearest
from benchmarks.measurement import Measurement, Options, Table, interleaved, median
from benchmarks.training.steps import CLASSES, REFERENCES, shape_of, sized_methods
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.deployment import FACTORISED, MERGED, merged_network, onnx_forward, write_onnx
from lowrank.io import ModelSpecification
from lowrank.layers import Method
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings

SHARES = (0.1, 0.3)  # of the separable network's parameters
REPEATS = 7
IN_ALL = 240.0  # seconds, unless --seconds says otherwise
EXPORTING = 0.7  # of the time of a share may go into building and exporting
LEAST_TIMED = 0.03  # seconds of one contestant's turn
MOST_CALLS = 20
TORCH, RUNTIME = "PyTorch", "ONNX Runtime"
COLUMNS = (
    "method", "settings", "params", "mult-adds M", "factors ms", "merged ms", "factors ORT ms", "merged ORT ms",
    "best/dense",
)  # fmt: skip
PLAIN_OPERATORS = (nn.Conv2d, nn.Linear)

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the shape of its images."""

    label: str
    network: NetworkSettings
    image_shape: tuple[int, int, int]


def cases(options: Options) -> list[Case]:
    """ResNet-9 and WRN-28-10 on CIFAR's shape; a narrow ResNet-9 on small images when `quick`."""
    if options.quick:
        narrow = NetworkSettings(name="resnet9", width=0.25)
        return [Case(label="ResNet-9, width 0.25", network=narrow, image_shape=(1, 8, 8))]
    networks = {"resnet9": "ResNet-9", "wrn_28_10": "WRN-28-10"}
    return [
        Case(label=label, network=NetworkSettings(name=name), image_shape=(3, 32, 32))
        for name, label in networks.items() if not options.networks or name in options.networks
    ]  # fmt: skip


@dataclass
class Contestants:
    """The networks of one share, ready to run one image.

    Attributes:
        runs: a call for each distinct network and runtime.
        keys: which of them stands in which cell, by method and column.
        failures: a line for each that cannot run.
        largest_gap: between the two runtimes' outputs, relative to the largest output; None where nothing ran in both.
    """

    folder: Path
    case: Case
    threads: int
    runs: dict[str, Run] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    largest_gap: float | None = None

    def add(self, name: str, form: str, network: nn.Module, *, export: bool) -> None:
        """Take in one form of a method's network, for PyTorch and, with `export`, for ONNX Runtime."""
        key = f"{name} {form}" if form == FACTORISED and name != "dense" else _shapes(network)
        image = torch.randn(1, *self.case.image_shape, generator=torch.Generator().manual_seed(0))
        if f"{key} {TORCH}" not in self.runs:
            self.runs[f"{key} {TORCH}"] = lambda: network(image)
            if export and find_spec("onnxruntime") is not None:
                self._add_runtime(f"{name} {form}", key, network, image)
        for runtime in (TORCH, RUNTIME):
            if f"{key} {runtime}" in self.runs:
                self.keys[name, f"{form} {runtime}"] = f"{key} {runtime}"

    def _add_runtime(self, label: str, key: str, network: nn.Module, image: Tensor) -> None:
        path = self.folder / f"{len(self.runs)}.onnx"
        specification = ModelSpecification(
            network=self.case.network, method=make_method({"name": "dense"}), image_shape=self.case.image_shape,
            classes=CLASSES,
        )  # fmt: skip
        try:
            write_onnx(network, specification, path)
            forward = onnx_forward(path, self.threads)
            expected = network(image)
            gap = float((forward(image) - expected).abs().max() / expected.abs().max())
            self.largest_gap = gap if self.largest_gap is None else max(self.largest_gap, gap)
            self.runs[f"{key} {RUNTIME}"] = lambda: forward(image)
        except Exception as error:  # exporters and runtimes raise anything; the reason is printed
            self.failures.append(f"{label}, {RUNTIME}: {type(error).__name__}: {error}".splitlines()[0])
        finally:
            path.unlink(missing_ok=True)


def _shapes(network: nn.Module) -> str:
    """Describe the plain layers of a network: two that agree here run the same operators."""
    layers = [
        (type(layer).__name__, *layer.weight.shape, getattr(layer, "stride", ()), layer.bias is not None)
        for layer in network.modules() if isinstance(layer, PLAIN_OPERATORS)
    ]  # fmt: skip
    return json.dumps(layers)


def methods_near(plan: NetworkPlan, share: float, names: tuple[str, ...]) -> tuple[dict[str, Method], list[str]]:
    """Every method nearest to a share of the separable network, and a line for each that cannot be."""
    target = int(share * plan.params(make_method({"name": "separable"})))
    methods, reasons = sized_methods(names, lambda method: nearest(plan, method, target))
    return methods, [f"left out: {reason}" for reason in reasons]


def measure_share(
    case: Case, plan: NetworkPlan, share: float, options: Options, until: float
) -> tuple[Table, list[str]]:
    """Time every method near one share of the separable network's parameters, dense and separable first.

    Args:
        case: the network.
        plan: its sites.
        share: of the separable network's parameters.
        options: of the command.
        until: when the table must be there (time.monotonic).

    Returns:
        The table; and notes on what is missing.
    """
    started = time.monotonic()
    stop_exporting = started + EXPORTING * (until - started)
    names = ("dense", "separable", "tensor_train", "bottleneck") if options.quick else tuple(METHODS)
    methods, notes = methods_near(plan, share, names)
    late = []
    with tempfile.TemporaryDirectory() as folder:
        contestants = Contestants(Path(folder), case, torch.get_num_threads())
        for name, method in methods.items():
            is_late = name not in REFERENCES and time.monotonic() > stop_exporting
            late += [name] * is_late
            network = build_student(case.network, plan, method, case.image_shape, CLASSES, options.seed).eval()
            contestants.add(name, FACTORISED, network, export=not is_late)
            contestants.add(name, MERGED, merged_network(network), export=not is_late)
        times = _times(contestants.runs, options, until)
    if late:
        notes.append(f"{case.label}, share {share:g}: not exported for want of time: {', '.join(late)}")
    notes += contestants.failures
    if contestants.largest_gap is not None:
        notes.append(
            f"{case.label}, share {share:g}: the outputs of both runtimes differ by at most "
            f"{contestants.largest_gap:.1g} of the largest"
        )
    cells = {cell: 1000 * median(times[key]) for cell, key in contestants.keys.items()}
    rows = [_row(name, method, plan, cells) for name, method in methods.items()]
    title = f"{case.label}, {share:.0%} of separable: one image, {torch.get_num_threads()} thread(s)"
    return Table(title=title, columns=COLUMNS, rows=rows), notes


def _row(name: str, method: Method, plan: NetworkPlan, cells: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    order = [f"{form} {runtime}" for runtime in (TORCH, RUNTIME) for form in (FACTORISED, MERGED)]
    times = [cells.get((name, column)) for column in order]
    dense = min(value for (row, _), value in cells.items() if row == "dense")
    best = min(value for value in times if value is not None)
    values = (name, shape_of(method), plan.params(method), plan.mult_adds(method) / 1e6, *times, best / dense)
    return dict(zip(COLUMNS, values, strict=True))


@torch.no_grad()
def _times(runs: Mapping[str, Run], options: Options, until: float) -> dict[str, list[float]]:
    """Seconds of one call, in turns; fewer turns where the time does not reach, but at least one."""

    def several(run: Run, calls: int) -> Run:
        def turn() -> None:
            for _ in range(calls):
                run()

        return turn

    counts, turn = {}, 0.0
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        counts[name] = max(1, min(MOST_CALLS, int(LEAST_TIMED / max(once, 1e-6))))
        turn += counts[name] * once
    repeats = max(1, min(options.repeated(REPEATS), int((until - time.monotonic()) / turn)))
    turns = interleaved({name: several(run, counts[name]) for name, run in runs.items()}, "cpu", repeats, warm_ups=0)
    return {name: [seconds / counts[name] for seconds in values] for name, values in turns.items()}


def run(options: Options) -> Measurement:
    """Every network and share within the time; each table is printed when it is there."""
    before, until = torch.get_num_threads(), time.monotonic() + (options.seconds or IN_ALL)
    torch.set_num_threads(options.threads or 1)
    shares = SHARES[:1] if options.quick else SHARES
    parts = [(case, share) for case in cases(options) for share in shares]
    tables, notes = [], []
    try:
        with torch.no_grad():
            for index, (case, share) in enumerate(parts):
                now = time.monotonic()
                plan = network_plan(case.network, case.image_shape, CLASSES)
                table, more = measure_share(case, plan, share, options, now + (until - now) / (len(parts) - index))
                print(table.title, *table.rows, *more, sep="\n", flush=True)
                tables.append(table)
                notes += more
    finally:
        torch.set_num_threads(before)
    return Measurement(
        name="latency", settings={"device": "cpu", "seed": options.seed, "threads": options.threads or 1,
                                  "precision": "float32", "turns": options.repeated(REPEATS)},
        tables=tables, notes=notes,
    )  # fmt: skip
