"""Measures how long a forward pass takes on this machine: the median of repeats, all models in turn."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowrank.utils import format_counted

BATCHES = (1, 64)
SECONDS = 1.5  # for one model at one batch size, unless there were fewer than MIN_ROUNDS
MIN_ROUNDS, MAX_ROUNDS, WARM_UPS = 5, 100, 2

BUSY = 2.0  # times the fastest repeat; a median of so much was delayed by something else

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one batch takes.

    Attributes:
        name: of the model.
        batch: number of images.
        median_ms: median of all repeats, in milliseconds.
        fastest_ms: the fastest repeat.
        slowest_ms: the slowest repeat.
        repeats: how many there were.
    """

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
    """Time models on random images.

    Each round runs all of them, so that a busy moment affects all alike.

    Args:
        contestants: the models by name.
        image_shape: (C, H, W).
        batches: numbers of images in a batch.
        seconds: for each model at each batch size.
        step: called with a line before each batch size.

    Returns:
        A measurement for each batch size and model.
    """
    latencies = []
    for batch in batches:
        step(f"measuring latency, batch {batch}")
        images = torch.randn(batch, *image_shape, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(WARM_UPS):
            for forward in contestants.values():
                forward(images)
        started, rounds = time.perf_counter(), 0
        limit = seconds * len(contestants)
        while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - started < limit):
            for name, forward in contestants.items():
                start = time.perf_counter()
                forward(images)
                times[name].append(1e3 * (time.perf_counter() - start))
            rounds += 1
        latencies += [_summary(name, batch, values) for name, values in times.items()]
    return latencies


def _summary(name: str, batch: int, values: Sequence[float]) -> Latency:
    return Latency(
        name=name, batch=batch, median_ms=statistics.median(values), fastest_ms=min(values), slowest_ms=max(values),
        repeats=len(values),
    )  # fmt: skip


def describe_machine(latencies: Sequence[Latency] = ()) -> str:
    """Describe this machine.

    Args:
        latencies: measured on it just now.

    Returns:
        The processor, the number of threads that torch uses, and torch's version, in one line; also that the machine
        was busy, if half of a model's repeats or more took `BUSY` times the fastest one.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    machine = f"{processor}, {format_counted(threads, 'thread')}, torch {torch.__version__}"
    delay = max((latency.median_ms / latency.fastest_ms for latency in latencies), default=1.0)
    if delay < BUSY:
        return machine
    return f"{machine}; busy with other work: a median is {delay:.1f} times the fastest repeat, so measure again"
