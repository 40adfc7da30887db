"""What one training step of a trainer takes: time, memory, and the largest batch that fits. Trains nothing of use.

MB are 1e6 bytes. On a CPU memory is that of the whole process beyond what it had before, read from Linux's own
high-water mark; where that cannot be read it is unknown (None).

The recipe's own batch is measured with the recipe's engine. Other batches are tried with one plain step each, on noise
and without a search for the fastest kernels: nothing is recorded or compiled for a batch that nobody asked for.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from lowrank.training.trainer import Trainer

TIMED_STEPS = 2  # after one that warms up
CPU_GROWTH = 4  # a CPU's batch is tried up to so many times the recipe's
GPU_GROWTH = 64
MARGIN = 2.5  # a batch is doubled on a CPU only while so many times its memory is free

T = TypeVar("T")
MakeTrainer = Callable[[int], Trainer]  # from a batch size, at most the training split
OutOfMemory = Callable[[BaseException], bool]
Fits = Callable[[int], bool | None]  # whether a batch of so many images fits; None: that is not tried


@dataclass(frozen=True)
class StepMeasurement:
    """One training step: seconds, images, and the peak of memory in MB (None where nobody counts)."""

    seconds: float
    images: int
    peak_mb: float | None

    @property
    def images_per_second(self) -> float:
        """Speed of training alone."""
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True)
class MemoryProbe:
    """A step at the recipe's batch (None, with the `reason`, where it does not fit) and the largest batch that fits.

    `largest_batch` is 0 where none fits; `limited` says that a larger one was seen not to fit.
    """

    step: StepMeasurement | None
    reason: str
    largest_batch: int
    limited: bool


def measure_step(make: MakeTrainer, batch_size: int, device: torch.device) -> StepMeasurement:
    """Build the trainer, warm it up and time its steps; raises torch's OutOfMemoryError or a RuntimeError."""
    _release(device)
    before = _begin_peak(device)
    return _timed(make(batch_size), device, before)


def _timed(trainer: Trainer, device: torch.device, before: float | None) -> StepMeasurement:
    images = min(trainer.recipe.batch_size, len(trainer.data.train))
    steps = trainer.probe()
    next(steps)
    taken = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        next(steps)
        taken.append(time.perf_counter() - start)
    return StepMeasurement(min(taken), images, _peak(device, before))


def probe_memory(make: MakeTrainer, batch_size: int, device: torch.device, out_of_memory: OutOfMemory) -> MemoryProbe:
    """Measure a step and search the largest batch that fits, by doubling, or by halving where the step does not fit.

    Args:
        make: of a trainer; it is called once.
        batch_size: the recipe's.
        device: where.
        out_of_memory: whether an error says that memory ran out; any other is raised.
    """
    _release(device)
    before = _begin_peak(device)
    trainer = make(batch_size)
    step, reason = _refusal(lambda: _timed(trainer, device, before), out_of_memory)
    trainer.captured_epoch = None  # gives back what a recorded step holds
    tries = _Tries(trainer, device, out_of_memory, step)
    size = trainer.recipe.batch_size
    if step is None:
        return MemoryProbe(
            step=None, reason=reason, largest_batch=largest_by_halving(tries.fits, tries.whole(size // 2)), limited=True
        )
    growth = CPU_GROWTH if device.type == "cpu" else GPU_GROWTH
    sizes = [min(size, tries.images)]
    while sizes[-1] < tries.images and 2 * sizes[-1] <= growth * size:
        sizes.append(tries.whole(min(2 * sizes[-1], tries.images)))
    largest, limited = largest_by_doubling(tries.fits, sizes, tries.guess(sizes))
    return MemoryProbe(step=step, reason="", largest_batch=largest, limited=limited)


def largest_by_halving(fits: Fits, size: int) -> int:
    """The first of `size`, half of it, a quarter ... that fits; 0: none does."""
    while size and not fits(size):
        size //= 2
    return size


def largest_by_doubling(fits: Fits, sizes: Sequence[int], guess: int = 1) -> tuple[int, bool]:
    """The largest of ascending `sizes` that fits, and whether a larger one was seen not to.

    Args:
        fits: is asked about every size but the first, which does.
        sizes: at least one.
        guess: the place in `sizes` that is tried first; the better the guess, the fewer tries.
    """
    place, last = max(1, guess), len(sizes) - 1
    if place > last or (found := fits(sizes[place])) is None:
        return sizes[0], False
    if not found:
        while place > 1 and not fits(sizes[place - 1]):
            place -= 1
        return sizes[place - 1], True
    while place < last and (found := fits(sizes[place + 1])):
        place += 1
    return sizes[place], found is False


class _Tries:
    """Plain steps of one trainer on batches of any size."""

    def __init__(
        self, trainer: Trainer, device: torch.device, out_of_memory: OutOfMemory, step: StepMeasurement | None
    ):
        self._trainer, self._device, self._out_of_memory = trainer, device, out_of_memory
        self._last_peak = None if step is None else step.peak_mb
        self.images = self.whole(len(trainer.data.train))

    def whole(self, size: int) -> int:
        """So many images or a few less, a multiple of the recipe's micro-batches; 0 where there are not as many."""
        return size - size % self._trainer.recipe.accumulate

    def fits(self, size: int) -> bool | None:
        """Whether a step on `size` images does; None on a CPU where memory is not plainly free for it."""
        if size == 0:
            return False
        free = available_mb() if self._device.type == "cpu" else None
        if free is not None and self._last_peak is not None and self._last_peak * MARGIN > free:
            return None
        done, _ = _refusal(lambda: self._take(size), self._out_of_memory)
        return done is not None

    def _take(self, size: int) -> bool:
        _release(self._device)
        before = _begin_peak(self._device)
        with _kernels_unsearched():
            self._trainer.try_batch(self._noise(size))
        self._last_peak = _peak(self._device, before)
        return True

    def _noise(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch as the trainer's own come, of no image."""
        data, every = self._trainer.data, torch.arange(size, device=self._device)
        images = torch.randn(size, *data.image_shape, device=self._device).to(memory_format=torch.channels_last)
        return images, every % len(data.classes), every % len(data.train)

    def guess(self, sizes: Sequence[int]) -> int:
        """The place of the largest size that a GPU should have memory for, by what the first one takes."""
        if self._device.type == "cpu" or len(sizes) == 1:
            return 1
        _release(self._device)
        kept = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        if not self.fits(sizes[0]):
            return 1
        each = (torch.cuda.max_memory_allocated(self._device) - kept) / sizes[0]
        room = _allowed(self._device) - kept
        return sum(size * each <= room for size in sizes) - 1


@contextmanager
def _kernels_unsearched() -> Iterator[None]:
    """Within, cuDNN takes the kernels that it thinks best."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _allowed(device: torch.device) -> float:
    """Bytes of a GPU's memory that this process may hold, what it holds already among them."""
    free, total = torch.cuda.mem_get_info(device)
    index = torch.cuda.current_device() if device.index is None else device.index  # this function insists on one
    share = torch.cuda.get_per_process_memory_fraction(index)
    return min(free + torch.cuda.memory_reserved(device), share * total)


def _refusal(call: Callable[[], T], out_of_memory: OutOfMemory) -> tuple[T | None, str]:
    """What `call` returns, or None and one line that says what memory ran out for."""
    try:
        return call(), ""
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None, next(iter(str(error).strip().splitlines()), type(error).__name__)


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
