"""Read and restore torch's random generators, so that a training step can be taken back or repeated."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Copy the state of the generators that a training step may draw from.

    Args:
        device: where the step runs.

    Returns:
        The state of the CPU's generator and, on a GPU, that of the device's.
    """
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Restore the generators.

    Args:
        states: what `random_state` returned.
        device: where the steps run.
    """
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
