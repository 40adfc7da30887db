"""Calibration images: how many judge instead of being fitted to, and what a network gives for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HELD_BACK = 0.25
"""Share of the calibration images by which variants are compared where no other images are given."""
BATCH = 256
"""Images that pass through a network at once."""


def fitting_count(count: int) -> int:
    """Return how many calibration images factors are fitted to.

    They are the first ones; the others judge.

    Args:
        count: of all calibration images; at least 2.

    Returns:
        All but HELD_BACK of them; at least one judges.
    """
    return count - max(1, round(HELD_BACK * count))


def batches_of(images: Tensor) -> tuple[Tensor, ...]:
    """Cut images into batches of BATCH.

    Args:
        images: (B, C, H, W).

    Returns:
        Views of them, in order; the last may be smaller.
    """
    return tuple(images.split(BATCH))


@torch.no_grad()
def network_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Run a network on images, a batch at a time.

    Args:
        network: in evaluation mode.
        images: (B, C, H, W), on its device.

    Returns:
        Its outputs (B, K) in float32.
    """
    return torch.cat([network(part).float() for part in batches_of(images)])
