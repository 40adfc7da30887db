"""Asks, before a study writes anything, whether its disk can take it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import format_bytes, format_counted, nearest_existing

BYTES_PER_PARAMETER = 8  # of a checkpoint: a weight and its momentum, in float32
GENERATIONS = 2  # checkpoints of a running trial
RESERVE_BYTES = 8_000_000  # for the journal, tables and pictures


def check_free_space(folder: Path, params: int, concurrent: int, trials: int) -> str | None:
    """Check that the disk of a study has room for the checkpoints of the trials that run at once.

    Args:
        folder: of the study; it need not exist.
        params: parameters of the largest network.
        concurrent: trials that run at once.
        trials: trials in all; the weights of each may stay.

    Returns:
        A line that says that the weights of all trials may not fit; None if they do.

    Raises:
        InputError: not even the trials that run at once fit.
    """
    nearest = nearest_existing(folder)
    free = shutil.disk_usage(nearest).free
    checkpoint = params * BYTES_PER_PARAMETER
    needed = concurrent * GENERATIONS * checkpoint + RESERVE_BYTES
    if free < needed:
        raise InputError(
            f"the disk of {nearest} must have {format_bytes(needed)} free for the checkpoints of "
            f"{format_counted(concurrent, 'trial')} at once, but has {format_bytes(free)}; make room, or choose "
            "another disk by --out"
        )
    total = needed + trials * checkpoint
    if free < total:
        return (
            f"the disk of {nearest} has {format_bytes(free)} free; the weights of "
            f"{format_counted(trials, 'trial')} may take up to {format_bytes(total)}"
        )
    return None
