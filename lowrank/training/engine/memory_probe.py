"""Measure one training step of a trainer: time, memory, and the largest batch that fits. Its training is not usable.

MB are 1e6 bytes. On a CPU memory is what the process holds beyond what it held before, by Linux's own high-water mark;
where that cannot be read it is None.

The recipe's own batch is measured with the recipe's engine. Other batches are tried with one plain step each, on noise
and without cuDNN's search for the fastest kernels: recording or compiling them would cost more than it tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from lowrank.training.engine.device_memory import free_memory
from lowrank.training.trainer import Trainer
from lowrank.utils import available_mb

TIMED_STEPS = 2  # after one that warms up
CPU_GROWTH = 4  # the largest batch tried on a CPU, as a multiple of the recipe's
GPU_GROWTH = 64  # likewise on a GPU
MARGIN = 2.5  # on a CPU a batch is doubled only if this multiple of its memory is free

T = TypeVar("T")
MakeTrainer = Callable[[int], Trainer]  # from a batch size, at most the training split
OutOfMemory = Callable[[BaseException], bool]
Fits = Callable[[int], bool | None]  # whether a batch of so many images fits; None if it is not tried


@dataclass(frozen=True)
class StepMeasurement:
    """Cost of one training step.

    Attributes:
        seconds: of one step.
        images: of one batch.
        peak_mb: most memory held at a time; None where it cannot be read.
    """

    seconds: float
    images: int
    peak_mb: float | None

    @property
    def images_per_second(self) -> float:
        """Speed of training alone."""
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True)
class MemoryProbe:
    """Whether the recipe's batch fits, and the largest batch that does.

    Attributes:
        step: at the recipe's batch; None if that does not fit.
        reason: why it does not fit; else "".
        largest_batch: 0 if none fits.
        limited: whether a larger batch was seen not to fit.
    """

    step: StepMeasurement | None
    reason: str
    largest_batch: int
    limited: bool


def measure_step(make: MakeTrainer, batch_size: int, device: torch.device) -> StepMeasurement:
    """Make a trainer, warm it up and time its steps.

    Args:
        make: makes the trainer.
        batch_size: given to `make`.
        device: of the trainer.

    Returns:
        The fastest of TIMED_STEPS steps, and the peak of all of them.

    Raises:
        OutOfMemoryError: torch's, if the batch does not fit on a GPU.
        RuntimeError: likewise on a CPU.
    """
    free_memory(device)
    before = _begin_peak(device)
    return _timed(make(batch_size), device, before)


def _timed(trainer: Trainer, device: torch.device, before: float | None) -> StepMeasurement:
    images = min(trainer.recipe.batch_size, len(trainer.data.train))
    steps = trainer.endless_steps()
    next(steps)
    seconds = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - start)
    return StepMeasurement(min(seconds), images, _peak(device, before))


def probe_memory(make: MakeTrainer, batch_size: int, device: torch.device, out_of_memory: OutOfMemory) -> MemoryProbe:
    """Measure a step and find the largest batch that fits.

    Batches are doubled from the recipe's, or halved if that does not fit.

    Args:
        make: makes the trainer; it is called once.
        batch_size: the recipe's.
        device: of the trainer.
        out_of_memory: says whether an error means that memory ran out; any other error is raised.

    Returns:
        The measurement and the largest batch.
    """
    free_memory(device)
    before = _begin_peak(device)
    trainer = make(batch_size)
    step, reason = _call_within_memory(lambda: _timed(trainer, device, before), out_of_memory)
    trainer.captured_epoch = None  # frees the memory of a recorded step
    trials = _TrialBatches(trainer, device, out_of_memory, step)
    size = trainer.recipe.batch_size
    if step is None:
        largest = largest_by_halving(trials.fits, trials.round_down(size // 2))
        return MemoryProbe(step=None, reason=reason, largest_batch=largest, limited=True)
    growth = CPU_GROWTH if device.type == "cpu" else GPU_GROWTH
    sizes = [min(size, trials.images)]
    while sizes[-1] < trials.images and 2 * sizes[-1] <= growth * size:
        sizes.append(trials.round_down(min(2 * sizes[-1], trials.images)))
    largest, limited = largest_by_doubling(trials.fits, sizes, trials.guess(sizes))
    return MemoryProbe(step=step, reason="", largest_batch=largest, limited=limited)


def largest_by_halving(fits: Fits, size: int) -> int:
    """Find the first of `size`, `size` / 2, `size` / 4 ... that fits.

    Args:
        fits: tries a batch.
        size: the first to try.

    Returns:
        0 if none fits.
    """
    while size and not fits(size):
        size //= 2
    return size


def largest_by_doubling(fits: Fits, sizes: Sequence[int], guess: int = 1) -> tuple[int, bool]:
    """Find the largest of ascending sizes that fits.

    Args:
        fits: tries a batch; it is not called for the first size, which is known to fit.
        sizes: at least one.
        guess: index of the size that is tried first; the better the guess, the fewer tries.

    Returns:
        The largest size, and whether a larger one was seen not to fit.
    """
    index, last = max(1, guess), len(sizes) - 1
    if index > last or (fitting := fits(sizes[index])) is None:
        return sizes[0], False
    if not fitting:
        while index > 1 and not fits(sizes[index - 1]):
            index -= 1
        return sizes[index - 1], True
    while index < last and (fitting := fits(sizes[index + 1])):
        index += 1
    return sizes[index], fitting is False


class _TrialBatches:
    """Plain steps of one trainer on batches of any size."""

    def __init__(
        self, trainer: Trainer, device: torch.device, out_of_memory: OutOfMemory, step: StepMeasurement | None
    ):
        self._trainer, self._device, self._out_of_memory = trainer, device, out_of_memory
        self._last_peak = None if step is None else step.peak_mb
        self.images = self.round_down(len(trainer.data.train))

    def round_down(self, size: int) -> int:
        """Round a batch down to a multiple of the recipe's micro-batches."""
        return size - size % self._trainer.recipe.accumulate

    def fits(self, size: int) -> bool | None:
        """Try a step on `size` images.

        Gives None, without a try, on a CPU whose free memory may not be enough.
        """
        if size == 0:
            return False
        free = available_mb() if self._device.type == "cpu" else None
        if free is not None and self._last_peak is not None and self._last_peak * MARGIN > free:
            return None
        done, _ = _call_within_memory(lambda: self._take_step(size), self._out_of_memory)
        return done is not None

    def _take_step(self, size: int) -> bool:
        free_memory(self._device)
        before = _begin_peak(self._device)
        with _without_kernel_search():
            self._trainer.try_batch(self._noise(size))
        self._last_peak = _peak(self._device, before)
        return True

    def _noise(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make a batch of noise in the form of the trainer's own batches."""
        data, indices = self._trainer.data, torch.arange(size, device=self._device)
        images = torch.randn(size, *data.image_shape, device=self._device).to(memory_format=torch.channels_last)
        return images, indices % len(data.classes), indices % len(data.train)

    def guess(self, sizes: Sequence[int]) -> int:
        """Estimate the index of the largest size that fits, from the first one's memory."""
        if self._device.type == "cpu" or len(sizes) == 1:
            return 1
        free_memory(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        if not self.fits(sizes[0]):
            return 1
        bytes_per_image = (torch.cuda.max_memory_allocated(self._device) - before) / sizes[0]
        free = _allowed(self._device) - before
        return sum(size * bytes_per_image <= free for size in sizes) - 1


@contextmanager
def _without_kernel_search() -> Iterator[None]:
    """Let cuDNN choose kernels by its heuristics inside `with`."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _allowed(device: torch.device) -> float:
    """Read how many bytes of a GPU's memory this process may hold, including those that it holds."""
    free, total = torch.cuda.mem_get_info(device)
    index = torch.cuda.current_device() if device.index is None else device.index  # the next call needs a number
    share = torch.cuda.get_per_process_memory_fraction(index)
    return min(free + torch.cuda.memory_reserved(device), share * total)


def _call_within_memory(call: Callable[[], T], out_of_memory: OutOfMemory) -> tuple[T | None, str]:
    """Call, and return the result and ""; if memory runs out, None and the first line of the error."""
    try:
        return call(), ""
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None, next(iter(str(error).strip().splitlines()), type(error).__name__)


def _begin_peak(device: torch.device) -> float | None:
    """Start counting the peak; return the MB of the process before, on a CPU."""
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
        return torch.cuda.max_memory_reserved(device) / 1e6  # a recorded step keeps its reserved memory
    highest = _status_mb("VmHWM")
    return None if before is None or highest is None else max(0.0, highest - before)


def _status_mb(field: str) -> float | None:
    """Read a field of /proc/self/status in MB; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 / 1e6 if values else None
