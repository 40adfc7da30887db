"""How long an answer takes on this machine: the median of repeats, batch by batch, all contestants in turn."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BATCHES = (1, 64)
SECONDS = 1.5  # for one contestant at one batch size, at least LEAST rounds
LEAST, MOST, WARM_UPS = 5, 100, 2

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds for one batch: the median of `repeats`, and the fastest and the slowest."""

    name: str
    batch: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    repeats: int


@torch.no_grad()
def measure_latency(
    contestants: Mapping[str, Forward], image_shape: Sequence[int], *, batches: Sequence[int] = BATCHES,
    seconds: float = SECONDS, step: Callable[[str], None] = lambda name: None,
) -> list[Latency]:  # fmt: skip
    """Time every contestant on random images; rounds go through all of them, so that a busy moment hits each alike."""
    found = []
    for batch in batches:
        step(f"latency, batch {batch}")
        images = torch.randn(batch, *image_shape, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(WARM_UPS):
            for forward in contestants.values():
                forward(images)
        started, rounds = time.perf_counter(), 0
        limit = seconds * len(contestants)
        while rounds < LEAST or (rounds < MOST and time.perf_counter() - started < limit):
            for name, forward in contestants.items():
                begun = time.perf_counter()
                forward(images)
                times[name].append(1e3 * (time.perf_counter() - begun))
            rounds += 1
        found += [_summary(name, batch, values) for name, values in times.items()]
    return found


def _summary(name: str, batch: int, values: Sequence[float]) -> Latency:
    return Latency(
        name=name, batch=batch, median_ms=statistics.median(values), fastest_ms=min(values), slowest_ms=max(values),
        repeats=len(values),
    )  # fmt: skip


def describe_machine() -> str:
    """The processor, the threads that torch uses, and torch's version, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{processor}, {threads} thread{'s' * (threads != 1)}, torch {torch.__version__}"
