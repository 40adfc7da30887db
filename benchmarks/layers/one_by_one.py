"""One training step (forward and backward) of every method's pointwise layer, beside the dense 1 x 1 convolution.

On the distinct pointwise shapes of ResNet-9 and WRN-28-10, summed as often as each occurs, and on all layers of a
network in one step (`all_at_once`); in interleaved runs, with the layers of tensorly-torch and tntorch that are
comparable (see `other_libraries`). On a GPU every step is captured in a CUDA graph, in bfloat16.
"""

from __future__ import annotations

import functools
import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.layers.other_libraries import absent_peers, peers_of
from benchmarks.measurement import Goal, Measurement, Options, Table, median, synchronise
from benchmarks.training.steps import CLASSES, SHARE, shape_of
from lowrank.compression.budget import Budget, solve
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import ConvShape, Method
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings

REPEATS = 5
REPLAYS = 20  # of a captured graph, timed together
SLOW = 8  # times dense: what takes longer than that in its first turn is not run again
WRN_BUDGET = 700_000
LIMITS = {
    **dict.fromkeys(("tensor_train", "tucker", "cp", "hashed", "bottleneck"), 1.15),
    **dict.fromkeys(("acdc", "monarch"), 1.5),
}  # times dense


MakeStep = Callable[[nn.Module, Tensor, Tensor], Callable[[], object] | None]


class Layer(NamedTuple):
    """A pointwise layer: I -> O channels on a side x side image."""

    in_channels: int
    out_channels: int
    side: int

    @property
    def shape(self) -> ConvShape:
        """The same as a ConvShape."""
        return ConvShape(self.in_channels, self.out_channels, in_area=self.side**2, out_area=self.side**2)

    def __str__(self) -> str:
        return f"{self.in_channels} -> {self.out_channels}, {self.side}x{self.side}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, the parameters that each method may have in it, and the batch of its layers."""

    label: str
    network: NetworkSettings
    budget: int | None  # None: a share of the separable network
    batch_size: int

    @cached_property
    def plan(self) -> NetworkPlan:
        """The network's sites on CIFAR's images."""
        return network_plan(self.network, (3, 32, 32), CLASSES)

    @property
    def params(self) -> int:
        """The budget of the whole network."""
        return self.budget or int(SHARE * self.plan.params(make_method({"name": "separable"})))

    @property
    def layers(self) -> dict[Layer, int]:
        """The distinct pointwise layers, and how often each occurs."""
        found: Counter[Layer] = Counter()
        for shape, times in self.plan.shapes:
            found[Layer(shape.in_channels, shape.out_channels, isqrt(shape.out_area))] += times
        return dict(found)


def cases(options: Options) -> list[Case]:
    """ResNet-9 and WRN-28-10 at batch 128, 512 on a GPU; a narrow ResNet-9 on two images when `quick`."""
    batch = 512 if options.device == "cuda" else 128
    if options.quick:
        thin = NetworkSettings(name="resnet9", width=0.25)
        return [Case(label="ResNet-9", network=thin, budget=20_000, batch_size=2)]
    return [
        Case(label="ResNet-9", network=NetworkSettings(name="resnet9"), budget=None, batch_size=batch),
        Case(label="WRN-28-10", network=NetworkSettings(name="wrn_28_10"), budget=WRN_BUDGET, batch_size=batch),
    ]


def nearest(plan: NetworkPlan, method: Method, target: int) -> Method:
    """The setting whose network is nearest to `target` parameters, above or below; raises InfeasibleError.

    Above the largest within the target, settings are searched up to as far as that one lies below it.
    """
    try:
        best = solve(plan, method, Budget(params=target))
    except InfeasibleError as error:
        return _smallest(plan, method, target, error)
    limit = 2 * target - plan.params(best)
    while (found := solve(plan, method, Budget(params=limit))) and plan.params(found) > target:
        best, limit = found, plan.params(found) - 1
    return best


def _smallest(plan: NetworkPlan, method: Method, target: int, error: InfeasibleError) -> Method:
    """The smallest setting of all, should none be as small as `target`; raises `error` when there is none."""
    limit, found = 2 * target, None
    while True:
        try:
            found = solve(plan, method, Budget(params=limit))
        except InfeasibleError:
            if found is None:
                raise error from None
            return found
        limit = plan.params(found) - 1


def solved(case: Case) -> tuple[dict[str, Method], list[str]]:
    """Dense, every method nearest to the budget, and who cannot be, with the reason."""
    methods, omitted = {"dense": make_method({"name": "dense"})}, []
    for name in METHODS:
        if name not in ("dense", "separable"):  # a separable network's pointwise layers are dense
            try:
                methods[name] = nearest(case.plan, make_method({"name": name}), case.params)
            except InfeasibleError as error:
                omitted.append(str(error))
    return methods, omitted


def images(layer: Layer, batch_size: int, options: Options) -> tuple[Tensor, Tensor]:
    """What goes into a layer, and the gradient of what comes out; channels last, bfloat16 on a GPU."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(options.seed)
    pixels = batch_size, layer.side, layer.side
    values = (torch.randn(*pixels, n, generator=generator) for n in (layer.in_channels, layer.out_channels))
    x, direction = (value.to(options.device, dtype).permute(0, 3, 1, 2) for value in values)
    return x.requires_grad_(), direction


def make_step(module: nn.Module, x: Tensor, direction: Tensor) -> Callable[[], object]:
    """Forward and backward, gradients of input and parameters; captured in a graph on a GPU."""
    module = module.to(x.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = [x, *module.parameters()]

    def step() -> None:
        with precision(x.device.type):
            found = module(x)
        torch.autograd.grad(found, inputs, direction.to(found.dtype), allow_unused=True)

    return captured(step) if x.is_cuda else step


def precision(device: str) -> AbstractContextManager[Any]:
    """Bfloat16 on a GPU, without the cache of cast weights, which must not outlive a capture; float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if device == "cuda" else nullcontext()


def captured(step: Callable[[], object], warm_ups: int = 3, pool: Any = None) -> Callable[[], object]:
    """The step as a CUDA graph, recorded after some runs on a side stream; graphs of one `pool` share their memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_ups):
            step()
    torch.cuda.current_stream().wait_stream(side)
    released("cuda")  # what the warm-up took
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return functools.partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, kept: Callable[[], object]) -> None:
    """Replay `graph`, which reads by address what the step that it was recorded from keeps alive."""
    graph.replay()


def released(device: str) -> None:
    """Gives the memory of graphs that nobody holds any longer back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Seconds of one step: by CUDA events over several replays, by the clock on a CPU."""
    if device != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(REPLAYS):
        step()
    after.record()
    synchronise(device)
    return before.elapsed_time(after) / 1000 / REPLAYS


def in_turn(steps: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, in turn; the first turn is dropped, save for what is so slow that it has no other."""
    first = {name: seconds_of(step, device) for name, step in steps.items()}
    slow = {name for name, seconds in first.items() if seconds > SLOW * first.get("dense", seconds) and seconds > 1}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            if name not in slow:
                times[name].append(seconds_of(step, device))
    return times


def built(method: Method, shape: ConvShape) -> nn.Module:
    """The method's layer; raises InfeasibleError, as a pointwise layer may be where one with a kernel is not."""
    if reason := method.infeasible(shape):
        raise InfeasibleError(reason)
    return method.build(shape)


def modules(
    methods: Mapping[str, Method], layer: Layer, peers: bool, on_gpu: bool
) -> dict[str, Callable[[], nn.Module]]:
    """How to build every method's layer, then their peers' where asked: a failed capture may trouble later ones."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, method in methods.items():
        found[name] = lambda method=method: built(method, layer.shape)  # type: ignore[misc]
    for name, method in methods.items() if peers else ():
        others = peers_of(method, layer.in_channels, layer.out_channels, on_gpu)
        found.update({f"{name} | {peer}": build for peer, build in others.items()})
    return found


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Steps of one network: sums over its layers of the median and of the fastest turn, and what failed and why."""

    middle: dict[str, float]
    fastest: dict[str, float]
    failed: dict[str, str]


def measure(
    case: Case,
    methods: Mapping[str, Method],
    options: Options,
    *,
    peers: bool = True,
    make_step: MakeStep = make_step,
    turns: int = REPEATS,
) -> Timed:
    """Time all layers of a network; what fails at one layer is left out of the sums, with the reason.

    What `make_step` has no step for is left out without one.
    """
    times: dict[str, list[tuple[float, float]]] = {}
    failed: dict[str, str] = {}
    for layer, count in case.layers.items():
        tensors = images(layer, case.batch_size, options)
        steps: dict[str, Callable[[], object]] = {}
        for name, build in modules(methods, layer, peers, options.device == "cuda").items():
            torch.manual_seed(options.seed)
            try:
                step = make_step(build(), *tensors)
                if step is None:
                    continue
                step()  # what cannot run fails here
                synchronise(options.device)
                steps[name] = step
            except Exception as error:  # the table is worth more than one of its rows; the reason is printed
                failed.setdefault(name, f"{name} at {layer}: {type(error).__name__}: {error}".splitlines()[0])
        for name, seconds in in_turn(steps, options.device, options.repeated(turns)).items():
            times.setdefault(name, []).append((count * median(seconds), count * min(seconds)))
        steps.clear()
        released(options.device)
    complete = {name: list(zip(*sums, strict=True)) for name, sums in times.items() if name not in failed}
    return Timed(
        middle={name: sum(sums[0]) for name, sums in complete.items()},
        fastest={name: sum(sums[1]) for name, sums in complete.items()}, failed=failed,
    )  # fmt: skip


def rows_of(case: Case, methods: Mapping[str, Method], timed: Timed) -> list[dict[str, Any]]:
    """One row for each method, and for each peer below it."""
    rows = []
    order = list(methods)
    for name, seconds in sorted(timed.fastest.items(), key=lambda item: order.index(item[0].partition(" | ")[0])):
        method, _, peer = name.partition(" | ")
        settings = methods[method]
        params = sum(settings.params(layer.shape) * count for layer, count in case.layers.items())
        rows.append({
            "network": case.label, "method": f"  {peer}" if peer else method, "of": method,
            "settings": "" if peer else shape_of(settings), "params": None if peer else params,
            "ms": 1000 * timed.middle[name], "fastest ms": 1000 * seconds,
            "x dense": timed.middle[name] / timed.middle["dense"] if "dense" in timed.middle else None,
            "ours / peer": timed.fastest[method] / timed.fastest[name] if peer and method in timed.fastest else None,
        })  # fmt: skip
    return rows


def goals_of(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Each method's layers against dense, and against each of its peers."""
    goals = []
    for row in rows:
        label = f"{row['network']}, {row['how']}: {row['of']}"
        if row["ours / peer"] is not None:
            goals.append(Goal(what=f"{label}{row['method']}", limit=1.0, found=row["ours / peer"], unit="x the peer"))
        elif row["of"] in LIMITS and row["x dense"] is not None:
            goals.append(Goal(what=label, limit=LIMITS[row["of"]], found=row["x dense"], unit="x dense"))
    return goals


def tables_of(case: Case, options: Options) -> tuple[list[Table], list[Goal], list[str]]:
    """The tables of a network: layers one by one, summed; on a CPU weights alone, on a GPU all layers in one step."""
    from benchmarks.layers.all_at_once import measure_together  # both are built upon this module
    from benchmarks.layers.rebuilt_weights import measure_weights

    columns = ("method", "settings", "params", "ms", "fastest ms", "x dense", "ours / peer")
    methods, left = solved(case)
    tables, goals, notes = [], [], [f"left out of {case.label}: {reason}" for reason in left]
    found = [("one by one, summed", measure(case, methods, options))]
    if options.device == "cpu":
        found.append(("weights alone, one by one, summed", measure_weights(case, methods, options)))
    if options.device == "cuda" or options.quick:  # a CPU has nothing to gain by stacks
        found.append(("all in one step, rebuilt together", measure_together(case, methods, options)))
    for how, timed in found:
        rows = [{**row, "how": how} for row in rows_of(case, methods, timed)]
        title = (
            f"Pointwise layers of {case.label}, {how}; batch {case.batch_size}; networks nearest to {case.params:,} "
            f"parameters; x dense of medians, ours / peer of the fastest turns, which other load slows least"
        )
        tables.append(Table(title=title, columns=columns, rows=rows))
        goals += goals_of(rows)
        notes += [f"failed: {reason}" for reason in timed.failed.values()]
    return tables, goals, notes


def run(options: Options) -> Measurement:
    """Measure both networks."""
    threads, before = options.threads or 1, torch.get_num_threads()
    torch.set_num_threads(threads)
    gc.freeze()  # what is imported need not be looked through after every capture
    tables, goals, notes = list[Table](), list[Goal](), absent_peers(options.device == "cuda")
    try:
        for case in cases(options):
            for gathered, found in zip((tables, goals, notes), tables_of(case, options), strict=True):
                gathered.extend(found)  # type: ignore[arg-type]
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)
    settings = {
        "seed": options.seed, "device": options.device, "threads": threads, "repeats": options.repeated(REPEATS),
        "precision": "bfloat16, CUDA graphs" if options.device == "cuda" else "float32",
    }  # fmt: skip
    return Measurement(name="layers", settings=settings, tables=tables, goals=goals, notes=notes)
