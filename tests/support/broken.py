"""A ResNet-9 whose training hits a device error, once, or runs out of memory; a file says that it has happened."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from lowrank.networks.resnet9 import ResNet9

MARK = "BROKEN_NETWORK_MARK"  # the environment variable that names the file
STEPS = 10  # training steps, an epoch and more, before it happens


class _Broken(ResNet9):
    error: Exception
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        mark = Path(os.environ[MARK])
        if self.calls == STEPS and not mark.exists():
            mark.touch()
            raise self.error
        return super().forward(x)


def device_error(in_channels: int, classes: int, width: float) -> ResNet9:
    """Hits a device error."""
    network = _Broken(in_channels, classes, width)
    network.error = RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for it online")
    return network


def out_of_memory(in_channels: int, classes: int, width: float) -> ResNet9:
    """Runs out of the device's memory."""
    network = _Broken(in_channels, classes, width)
    network.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
    return network
