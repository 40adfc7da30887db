"""What one training step of a trainer takes: time, memory, and the largest batch that fits. Trains nothing of use.

MB are 1e6 bytes. On a CPU memory is that of the whole process beyond what it had before, read from Linux's own
high-water mark; where that cannot be read it is unknown (None).
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lowrank.training import Trainer

TIMED_STEPS = 2  # after one that warms up
CPU_GROWTH = 4  # a CPU's batch is tried up to so many times the recipe's
GPU_GROWTH = 64
MARGIN = 2.5  # a batch is doubled on a CPU only while so many times its memory is free

MakeTrainer = Callable[[int], Trainer]  # from a batch size, at most the training split
OutOfMemory = Callable[[BaseException], bool]


@dataclass(frozen=True)
class Step:
    """One training step: seconds, images, and the peak of memory in MB (None where nobody counts)."""

    seconds: float
    images: int
    peak_mb: float | None

    @property
    def images_per_second(self) -> float:
        """Speed of training alone."""
        return self.images / self.seconds


def measure_step(make: MakeTrainer, batch_size: int, device: torch.device) -> Step:
    """Build the trainer, warm it up and time its steps; raises torch's OutOfMemoryError or a RuntimeError."""
    _release(device)
    before = _begin_peak(device)
    trainer = make(batch_size)
    images = min(trainer.recipe.batch_size, len(trainer.data.train))
    steps = trainer.probe()
    next(steps)
    taken = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        next(steps)
        taken.append(time.perf_counter() - start)
    del steps, trainer
    return Step(min(taken), images, _peak(device, before))


def largest_batch(
    make: MakeTrainer,
    first: Step | None,
    batch_size: int,
    device: torch.device,
    out_of_memory: OutOfMemory,
) -> tuple[int, bool]:
    """The largest batch that fits, by doubling from the recipe's, or by halving where that does not fit; 0: none does.

    Also whether a larger one was seen not to fit.

    Args:
        make: of a trainer.
        first: the step at `batch_size`; None when it did not fit.
        batch_size: the recipe's.
        device: where.
        out_of_memory: whether an error says that memory ran out; any other is raised.
    """
    if first is None:
        size = batch_size // 2
        while size and not isinstance(_tried(make, size, device, out_of_memory), Step):
            size //= 2
        return size, True
    growth = CPU_GROWTH if device.type == "cpu" else GPU_GROWTH
    size, step = batch_size, first
    while 2 * size <= growth * batch_size and step.images == size and _room(step, device):
        found = _tried(make, 2 * size, device, out_of_memory)
        if found is None:
            return size, True
        if found.images < 2 * size:  # all training images in one batch
            return found.images, False
        size, step = 2 * size, found
    return size, False


def _tried(make: MakeTrainer, size: int, device: torch.device, out_of_memory: OutOfMemory) -> Step | None:
    try:
        return measure_step(make, size, device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def _room(step: Step, device: torch.device) -> bool:
    """Whether twice the step may be tried: a GPU refuses by itself, a machine without memory is killed."""
    if device.type != "cpu":
        return True
    free = available_mb()
    return step.peak_mb is None or free is None or MARGIN * step.peak_mb < free


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed; others have no such call
        if trim is not None:
            trim(0)


def _begin_peak(device: torch.device) -> float | None:
    """Start counting the peak; MB of the process before, on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0.0
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_mb("VmRSS")


def _peak(device: torch.device, before: float | None) -> float | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) / 1e6  # a recorded step keeps what it has reserved
    highest = _status_mb("VmHWM")
    return None if before is None or highest is None else max(0.0, highest - before)


def _status_mb(field: str) -> float | None:
    """A field of /proc/self/status in MB; None where there is no such file."""
    return _kilobytes(Path("/proc/self/status"), field)


def available_mb() -> float | None:
    """Memory of the machine that can be had, in MB; None where nobody says."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _kilobytes(path: Path, field: str) -> float | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 / 1e6 if found else None
