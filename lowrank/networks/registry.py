"""The networks, dense as published, by name.

A network's class is imported when one is made: the names alone need no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from lowrank.errors import InputError, unknown
from lowrank.networks.images import CIFAR_IMAGE, IMAGENET_IMAGE, ImageShape

if TYPE_CHECKING:
    from torch import nn


class NetworkSettings(BaseModel):
    """Which network, and how it differs from the published one.

    Attributes:
        name: one of NETWORK_NAMES.
        width: multiple of the inner channels.
        linear: substitute also the linear maps that the network does not exclude.
        weights: name of trained weights of a torchvision network.
        auxiliary: add DARTS's second head, which only training uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "resnet9"
    width: float = Field(default=1.0, gt=0, le=16)
    linear: bool = False
    weights: str | None = None
    auxiliary: bool = False


Maker = Callable[[re.Match[str], NetworkSettings, ImageShape, int], "nn.Module"]


def _resnet9(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.resnet9 import ResNet9

    return ResNet9(image[0], classes, width=settings.width)


def _wide_resnet(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.wide_resnet import WideResNet

    return WideResNet(image[0], classes, depth=int(match[1]), widen=int(match[2]), width=settings.width)


def _wrn50_2(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.wide_resnet50_2 import WideResNet50

    return WideResNet50(image[0], classes, width=settings.width)


def _darts(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.darts import DARTS

    return DARTS(image[0], classes, width=settings.width, auxiliary=settings.auxiliary)


def _mobilenet_v2(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.mobilenet_v2 import MobileNetV2

    return MobileNetV2(image[0], classes, width=settings.width)


def _vgg16(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.vgg16 import VGG16

    return VGG16(image[0], classes, width=settings.width)


def _mlp(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.mlp import MLP

    return MLP(image, classes, width=settings.width)


def _torchvision(match: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import torchvision_network, width_unsupported

    if settings.width != 1.0:
        raise width_unsupported(settings.name)
    return torchvision_network(match[1], image, classes, settings.weights)


def _imported(_: re.Match[str], settings: NetworkSettings, image: ImageShape, classes: int) -> nn.Module:
    from lowrank.networks.external import imported_network

    return imported_network(settings.name, image, classes, settings.width)


@dataclass(frozen=True)
class _Entry:
    """One kind of network.

    Attributes:
        pattern: of its names.
        shown: how the name is written, for messages.
        make: makes it.
        image: (C, H, W) of the images that it was published for.
        classes: number of their classes.
    """

    pattern: str
    shown: str
    make: Maker
    image: ImageShape = CIFAR_IMAGE
    classes: int = 10


# A network is one file and one line here.
_TABLE = (
    _Entry(r"resnet9", "resnet9", _resnet9),
    _Entry(r"wrn_50_2", "wrn_50_2", _wrn50_2, IMAGENET_IMAGE, 1000),
    _Entry(r"wrn_(\d+)_(\d+)", "wrn_D_W (such as wrn_28_10)", _wide_resnet),
    _Entry(r"darts", "darts", _darts),
    _Entry(r"mobilenet_v2", "mobilenet_v2", _mobilenet_v2, IMAGENET_IMAGE, 1000),
    _Entry(r"vgg16", "vgg16", _vgg16),
    _Entry(r"mlp", "mlp", _mlp),
    _Entry(r"torchvision:(.*)", "torchvision:NAME (such as torchvision:resnet18)", _torchvision, IMAGENET_IMAGE, 1000),
    _Entry(r"[A-Za-z_][\w.]*:\w+", "package.module:function (your own)", _imported),
)
NETWORK_NAMES = tuple(entry.shown for entry in _TABLE)


def _find(name: str) -> tuple[_Entry, re.Match[str]]:
    for entry in _TABLE:
        match = re.fullmatch(entry.pattern, name)
        if match is not None:
            return entry, match
    raise unknown("network", name, NETWORK_NAMES)


def default_images(name: str) -> tuple[ImageShape, int]:
    """Return what a network was published for.

    Args:
        name: of the network.

    Returns:
        The shape of the images (C, H, W) and the number of classes.

    Raises:
        InputError: the name is unknown.
    """
    entry, _ = _find(name)
    return entry.image, entry.classes


def for_counting(settings: NetworkSettings) -> NetworkSettings:
    """Return the settings without trained weights and auxiliary head.

    Counting leaves both out.

    Args:
        settings: of a network.

    Returns:
        A copy with neither.
    """
    return settings.model_copy(update={"weights": None, "auxiliary": False})


def make_network(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> nn.Module:
    """Make a dense network.

    Weights are drawn from torch's global generator: seed it first.

    Args:
        settings: which network.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        The network.

    Raises:
        InputError: the name is unknown, a setting does not fit the network, or the images are too small.
    """
    entry, match = _find(settings.name)
    if settings.weights is not None and entry.make is not _torchvision:
        raise InputError(f"`weights` are torchvision's: {settings.name} has none, but got {settings.weights!r}")
    if settings.auxiliary and entry.make is not _darts:
        raise InputError(f"{settings.name} has no `auxiliary` head; darts has")
    network = entry.make(match, settings, image_shape, classes)
    min_size = getattr(network, "min_image_size", 1)
    if min(image_shape[1:]) < min_size:
        height, width = image_shape[1:]
        raise InputError(
            f"{settings.name} needs images of at least {min_size} x {min_size}, but got {height} x {width}"
        )
    return network
