"""How long counting a configuration takes: parameters, mult-adds and feasibility, each setting new to every cache.

    python -m benchmarks counting

The network is traced once before (the column "trace"); what is timed is what a search pays for a proposal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from benchmarks.measurement import Goal, Measurement, Options, Table, median
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.trace import network_plan
from lowrank.layers import Method
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings, default_images

LIMITS = {"wrn_28_10": 2.0, "darts": 10.0}  # ms a configuration
NETWORKS = ("wrn_28_10", "darts", "resnet9", "wrn_50_2", "mobilenet_v2")
CONFIGURATIONS = 200
DIMS = range(2, 10)


def configurations(name: str) -> Iterator[Method]:
    """Settings of a method that no cache has seen, without end; those of integer sizes are few and come again."""
    kind, step = METHODS[name], 0
    while True:
        step += 1
        settings: dict[str, Any] = {"name": name}
        if "dims" in kind.model_fields:
            settings["dims"] = DIMS[step % len(DIMS)]
        if "layers" in kind.model_fields:
            settings["layers"] = 1 + step % 256
        if "groups" in kind.model_fields:
            settings["groups"] = 1 + step % 640
        method = make_method(settings)
        yield method if kind.scale is None else method.with_scale((step * 0.618033988749895) % 1 or 0.5)


def times(plan: NetworkPlan, name: str, count: int) -> list[float]:
    """Milliseconds of counting each configuration."""
    times = []
    for method in list(islice(configurations(name), count)):
        start = time.perf_counter()
        if plan.infeasible(method) is None:
            plan.params(method), plan.mult_adds(method)
        times.append(1000 * (time.perf_counter() - start))
    return times


def measure(name: str, count: int) -> Table:
    """One network under every method."""
    start = time.perf_counter()
    network_plan.cache_clear()
    plan = network_plan(NetworkSettings(name=name), *default_images(name))
    trace = 1000 * (time.perf_counter() - start)
    rows = []
    for method in METHODS:
        taken = times(plan, method, count)
        rows.append({"method": method, "median ms": median(taken), "worst ms": max(taken)})
    title = f"{name}: {len(plan.shapes)} shapes, traced in {trace:.0f} ms"
    return Table(title=title, columns=("method", "median ms", "worst ms"), rows=rows)


def run(options: Options) -> Measurement:
    """Measure every network; the goal is the slowest method's median."""
    count = 5 if options.quick else CONFIGURATIONS
    tables = {name: measure(name, count) for name in (list(LIMITS) if options.quick else NETWORKS)}
    goals = [
        Goal(
            what=f"counting a configuration of {name}", limit=limit,
            found=max(row["median ms"] for row in tables[name].rows), unit="ms",
        )
        for name, limit in LIMITS.items()
    ]  # fmt: skip
    return Measurement(
        name="counting", settings={"configurations a method": count}, tables=list(tables.values()), goals=goals
    )
