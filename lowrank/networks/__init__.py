"""The networks, dense as published, by name: `resnet9`, `wrn_D_W`."""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from lowrank.errors import InputError, unknown
from lowrank.networks.base import Network
from lowrank.networks.resnet9 import ResNet9
from lowrank.networks.wide_resnet import WideResNet

__all__ = ["NETWORK_NAMES", "Network", "NetworkSettings", "ResNet9", "WideResNet", "make_network"]


class NetworkSettings(BaseModel):
    """Which network, and how wide relative to the published one (`width` multiplies the inner channels)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "resnet9"
    width: float = Field(default=1.0, gt=0, le=16)


Maker = Callable[..., nn.Module]


def _wide_resnet(match: re.Match[str], in_channels: int, classes: int, width: float) -> nn.Module:
    return WideResNet(in_channels, classes, depth=int(match[1]), widen=int(match[2]), width=width)


def _resnet9(match: re.Match[str], in_channels: int, classes: int, width: float) -> nn.Module:
    return ResNet9(in_channels, classes, width=width)


# A network is one file and one line here: the pattern of its name, how the name is written, and its maker.
_TABLE: tuple[tuple[str, str, Maker], ...] = (
    (r"resnet9", "resnet9", _resnet9),
    (r"wrn_(\d+)_(\d+)", "wrn_D_W (such as wrn_28_10)", _wide_resnet),
)
NETWORK_NAMES = tuple(shown for _, shown, _ in _TABLE)


def make_network(settings: NetworkSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The dense network for images of (C, H, W) and so many classes; raises InputError for a name or image too small.

    Weights are drawn from torch's global generator: seed it first.
    """
    for pattern, _, maker in _TABLE:
        match = re.fullmatch(pattern, settings.name)
        if match is None:
            continue
        network = maker(match, image_shape[0], classes, settings.width)
        least = getattr(network, "smallest_image", 1)
        if min(image_shape[1:]) < least:
            height, width = image_shape[1:]
            raise InputError(f"{settings.name} needs images of at least {least} x {least}, but got {height} x {width}")
        return network
    raise unknown("network", settings.name, NETWORK_NAMES)
