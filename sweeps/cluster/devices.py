"""The device of a worker process: which one it uses, how much of its memory, and whether that ran out."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

import torch

from lowrank.errors import InputError

_NO_CPU_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation")
_NO_DEVICE_MEMORY = "CUDA error: out of memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host; the process itself is sound."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (bool(_NO_CPU_MEMORY.search(text)) or _NO_DEVICE_MEMORY in text)


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
