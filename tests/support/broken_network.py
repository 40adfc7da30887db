"""A ResNet-9 whose training hits a device error or runs out of memory; a file says that it has happened."""

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
    for_good = False  # whether it happens again to the first network that it happened to
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        mark = Path(os.environ[MARK])
        if self.calls == STEPS and self._is_hit(mark):
            raise self.error
        return super().forward(x)

    def _is_hit(self, mark: Path) -> bool:
        own = str(sum(parameter.numel() for parameter in self.parameters()))
        try:
            with mark.open("x") as file:  # of several processes one alone
                file.write(own)
        except FileExistsError:
            return self.for_good and mark.read_text() == own
        return True


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


def too_large(in_channels: int, classes: int, width: float) -> ResNet9:
    """The first one runs out of memory however often it is tried."""
    network = _Broken(in_channels, classes, width)
    network.error, network.for_good = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 GiB."), True
    return network
