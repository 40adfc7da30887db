"""What a worker process survives, and what it does not: memory that runs out, a device that is lost."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

import torch

from lowrank.data import ImageData
from lowrank.errors import InputError, LowrankError

LEFT_MB = 1000.0
"""Device memory, in MB (1e6 bytes), that a finished trial may leave behind beside the images: libraries, a teacher."""
_NO_CPU_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation")
_NO_DEVICE_MEMORY = "CUDA error: out of memory"
_DEVICE_ERRORS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")


class WorkerLostError(LowrankError):
    """This process is of no more use; its trial goes on in a new one. One line, which is recorded as the reason."""


def first_line(error: BaseException) -> str:
    """An error's text up to its first line break, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host; the process itself is sound."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (bool(_NO_CPU_MEMORY.search(text)) or _NO_DEVICE_MEMORY in text)


def device_lost(error: BaseException) -> bool:
    """Whether the device gave an error after which nothing that this process does there can be trusted."""
    if out_of_memory(error):
        return False
    accelerator = isinstance(error, torch.AcceleratorError)
    return accelerator or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in _DEVICE_ERRORS))


def given_device(gpus: float, assigned: Sequence[str | int] = ()) -> str:
    """cpu or cuda, by the `gpus` that a trial was given; never a card without, even where one is visible.

    `assigned` are the cards' numbers where Ray says them. Raises InputError where the trial does not see exactly the
    cards that it was given: it would train slowly on a CPU, or on the card of another.
    """
    if gpus == 0:
        return "cpu"
    seen = torch.cuda.device_count()
    if seen == 0:
        raise InputError(
            f"the trial was given {gpus:g} of {platform.node()}'s cards, but torch {torch.__version__} sees none there"
        )
    if assigned and seen != len(assigned):
        raise InputError(f"the trial was given {len(assigned)} of {platform.node()}'s cards, but torch sees {seen}")
    return "cuda"


def limit_memory(gpus: float) -> None:
    """Let this process take no more of its card's memory than its share, so that it cannot starve its neighbours."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))


def resident_mb(data: ImageData, device: torch.device) -> float:
    """MB of the images that stay on a device from trial to trial."""
    if not data.resident:
        return 0.0
    splits = (split for split in (data.train, data.val, data.test) if split.is_decoded)
    return sum(tensor.numel() * tensor.element_size() for split in splits for tensor in split.on(device)) / 1e6


def check_memory_is_back(data: ImageData, allocated_mb: float, device: torch.device) -> None:
    """Raises WorkerLostError when, between two trials, more lies on the device than images and LEFT_MB."""
    expected = resident_mb(data, device) + LEFT_MB
    if allocated_mb > expected:
        raise WorkerLostError(
            f"{allocated_mb:,.0f} MB of device memory did not come back after a trial (at most {expected:,.0f} MB may "
            "stay); the worker is replaced"
        )
