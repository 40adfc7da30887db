"""One training step (forward, backward, SGD) of every method, beside the dense and the separable form of the network.

All methods have the same budget: a share of the separable network's parameters, solved as a sweep solves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from benchmarks.measurement import Measurement, Options, Table, interleaved, median
from lowrank.compression.budget import Budget, solve
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import Method
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.optimizer import parameter_groups
from lowrank.training.recipe import Recipe

SHARE = 0.1  # of the separable network's parameters
CLASSES = 10
REPEATS = 5
REFERENCES = ("dense", "separable")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the batch that it trains on; `calls` steps are timed together."""

    label: str
    network: NetworkSettings
    image_shape: tuple[int, int, int]
    batch_size: int
    calls: int = 1

    @property
    def plan(self) -> NetworkPlan:
        """The network's sites."""
        return network_plan(self.network, self.image_shape, CLASSES)


def cases(options: Options) -> list[Case]:
    """ResNet-9 on digits and on CIFAR's shape; narrow networks and small batches when `quick`."""
    network = NetworkSettings(name="resnet9", width=0.5 if options.quick else 1.0)
    on_gpu = options.device == "cuda"
    small, large = (8, 16) if options.quick else (32, 512 if on_gpu else 128)
    calls = 10 if on_gpu else 1
    return [
        Case(label="ResNet-9, 8x8x1", network=network, image_shape=(1, 8, 8), batch_size=small, calls=max(calls, 3)),
        Case(label="ResNet-9, 32x32x3", network=network, image_shape=(3, 32, 32), batch_size=large, calls=calls),
    ]


def settings_within(plan: NetworkPlan, share: float) -> tuple[dict[str, Method], list[str]]:
    """Every method at the largest size within `share` of the separable network, and who cannot be, with the reason."""
    budget = Budget(params=int(share * plan.params(make_method({"name": "separable"}))))
    methods, reasons = sized_methods(METHODS, lambda method: solve(plan, method, budget))
    return methods, [f"left out: {reason}" for reason in reasons]


def sized_methods(names: Iterable[str], size: Callable[[Method], Method]) -> tuple[dict[str, Method], list[str]]:
    """Every method as `size` gives it, references as they are, and the reason for each that cannot be."""
    methods, reasons = {}, []
    for name in names:
        method = make_method({"name": name})
        try:
            methods[name] = method if name in REFERENCES else size(method)
        except InfeasibleError as error:
            reasons.append(str(error))
    return methods, reasons


def make_step(case: Case, method: Method, options: Options) -> Callable[[], object]:
    """One training step, as the project's Trainer takes it: channels last, fused SGD, bfloat16 on a GPU."""
    device = torch.device(options.device)
    network = build_student(case.network, case.plan, method, case.image_shape, CLASSES, options.seed).to(device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = Recipe()
    groups = parameter_groups(network, recipe, 1.0)
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(case.batch_size, *case.image_shape, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (case.batch_size,), generator=generator).to(device)

    def step() -> None:
        with autocast(device):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def shape_of(method: Method) -> str:
    """The settings in a few words."""
    fields = ((key, value) for key, value in method.model_dump().items() if key != "name" and value is not None)
    return ", ".join(f"{key} {value}" for key, value in fields)


def measure(case: Case, options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one network, and the methods left out."""
    methods, omitted = settings_within(case.plan, SHARE)
    steps = {name: make_step(case, method, options) for name, method in methods.items()}
    warm_ups = 3 if options.device == "cuda" else 1
    times = interleaved(steps, options.device, options.repeated(REPEATS), calls=case.calls, warm_ups=warm_ups)
    middle = {name: median(seconds) for name, seconds in times.items()}
    rows = [
        {
            "network": case.label, "batch": case.batch_size, "method": name, "settings": shape_of(methods[name]),
            "params": case.plan.params(methods[name]), "ms": 1000 * seconds, "slowest ms": 1000 * max(times[name]),
            "images/s": case.batch_size / seconds, "x separable": seconds / middle["separable"],
            "x dense": seconds / middle["dense"], "seconds": times[name],
        }
        for name, seconds in middle.items()
    ]  # fmt: skip
    return rows, omitted


def as_table(case: Case, rows: list[dict[str, Any]]) -> Table:
    """The rows of one network; "x" is the time as a multiple of a reference's."""
    columns = ("method", "settings", "params", "ms", "slowest ms", "images/s", "x separable", "x dense")
    title = f"One step of {case.label}, batch {case.batch_size}; methods within {SHARE:.0%} of separable's parameters"
    return Table(title=title, columns=columns, rows=rows)


def run(options: Options) -> Measurement:
    """Measure every network."""
    threads = options.threads or 1  # a trial's default share is one core
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measured = [measure(case, options) for case in cases(options)]
    finally:
        torch.set_num_threads(before)
    precision = "bfloat16" if options.device == "cuda" else "float32"
    return Measurement(
        name="steps",
        settings={
            "seed": options.seed, "device": options.device, "precision": precision, "threads": threads,
            "repeats": options.repeated(REPEATS),
        },
        tables=[as_table(case, rows) for case, (rows, _) in zip(cases(options), measured, strict=True)],
        notes=[note for _, omitted in measured for note in omitted],
    )  # fmt: skip
