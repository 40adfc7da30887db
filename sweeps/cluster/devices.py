"""The device of a worker process: which one it uses, how much of its memory, and whether that ran out."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

import torch

from lowrank.errors import InputError

_NO_CPU_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation")
_NO_DEVICE_MEMORY = "CUDA error: out of memory"
_DEVICE_ERRORS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; the process itself is still sound.

    Args:
        error: any exception of a training.

    Returns:
        True if the memory of the device or of the host was not enough.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (bool(_NO_CPU_MEMORY.search(text)) or _NO_DEVICE_MEMORY in text)


def device_lost(error: BaseException) -> bool:
    """Tell whether after an error this process cannot use its device any more.

    Args:
        error: any exception of a training.

    Returns:
        True for errors of CUDA and its libraries but for memory that ran out.
    """
    if out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _DEVICE_ERRORS)


def assigned_device(gpus: float, cards: Sequence[str | int] = ()) -> str:
    """Choose the device of a trial by the GPUs that Ray assigned to it.

    A trial without GPUs uses the CPU, even if it sees a card.

    Args:
        gpus: assigned GPUs; a fraction for a share of a card.
        cards: the numbers of the assigned cards, if Ray names them.

    Returns:
        `cpu` or `cuda`.

    Raises:
        InputError: torch does not see exactly the assigned cards. The trial would train slowly on a CPU, or on a card
            of another trial.
    """
    if gpus == 0:
        return "cpu"
    visible = torch.cuda.device_count()
    if visible == 0:
        raise InputError(
            f"the trial was given {gpus:g} of {platform.node()}'s cards, but torch {torch.__version__} sees none there"
        )
    if cards and visible != len(cards):
        raise InputError(f"the trial was given {len(cards)} of {platform.node()}'s cards, but torch sees {visible}")
    return "cuda"


def limit_memory(gpus: float) -> None:
    """Limit this process to its share of a card's memory, so that others have theirs.

    Args:
        gpus: the share of the card; 1 or more for all of it.
    """
    torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
