"""What every network of the project says of itself, and the starts they share."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn


class Network(nn.Module):
    """A classifier that names the modules which are never substituted (`kept`) and its stages' ends (`taps`)."""

    kept: ClassVar[tuple[str, ...]] = ()  # shell-style patterns of module names
    taps: ClassVar[tuple[str, ...]] = ()
    smallest_image: ClassVar[int] = 1  # least height and width in pixels


def scaled(channels: int, width: float) -> int:
    """Channels of a network made `width` times as wide; at least 1."""
    return max(1, round(channels * width))


def start_convolutions(network: nn.Module) -> None:
    """He's start, fan-in, for every convolution (He et al. 2015); linear maps keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
