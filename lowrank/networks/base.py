"""The base class of the networks, and the parts that several of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lowrank.errors import InputError


class Network(nn.Module):
    """A classifier that tells substitution and distillation about its modules.

    Attributes:
        never_substituted: shell-style patterns of module names.
        linear_maps: patterns of the linear maps that are substituted also without `NetworkSettings.linear`.
        taps: names of the modules that end a stage, where a teacher's attention is compared.
        base: the published form, which substitution compresses.
        min_image_size: least height and width in pixels.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ()
    linear_maps: ClassVar[tuple[str, ...]] = ()
    taps: ClassVar[tuple[str, ...]] = ()
    base: ClassVar[Literal["dense", "separable"]] = "dense"
    min_image_size: int = 1


class DropPath(nn.Module):
    """Drops the path of a sample in training, with probability `rate`.

    The paths that stay are divided by the probability to stay. The rate is a tensor, so that a compiled network follows
    a schedule without being compiled again.
    Source: Larsson et al. 2017, "FractalNet", as used by Zoph et al. 2018.
    """

    rate: Tensor
    shard = (0, 1)  # index and count of the processes that share a batch; `forward` sees the images of one

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def set_rate(self, rate: float) -> None:
        """Set the probability to drop a path; raises InputError outside 0 <= rate < 1."""
        if not 0 <= rate < 1:
            raise InputError(f"the drop-path rate must be at least 0 and below 1, but got {rate}")
        self.rate.fill_(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; the identity in evaluation."""
        if not self.training:
            return x
        index, count = self.shard
        keep = 1 - self.rate
        mask = (torch.rand(count * x.shape[0], 1, 1, 1, device=x.device) < keep).chunk(count)[index]
        return x * (mask / keep).to(x.dtype)


def scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by `width` and round it; at least 1."""
    return max(1, round(channels * width))


def scaled_channels(
    published: Sequence[int], width: float, channels: Sequence[int] | None, name: str
) -> list[int]:  # fmt: skip
    """Give the channels of each convolution of a network.

    Args:
        published: as the network was published.
        width: multiple of the channels.
        channels: other channels than the published ones; None for those.
        name: of the network, for the message.

    Returns:
        At least 1 channel for each convolution.

    Raises:
        InputError: `channels` has another length.
    """
    if channels is not None and len(channels) != len(published):
        raise InputError(f"`channels` of {name} must have {len(published)} numbers, but got {len(channels)}")
    return [scaled(count, width) for count in (channels or published)]


def has_batch_norms(network: nn.Module) -> bool:
    """Return whether a network takes statistics over the images of a batch.

    Args:
        network: any.

    Returns:
        True where a module of it is a batch norm of any dimension.
    """
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def init_convolutions(network: nn.Module) -> None:
    """Draw every convolution's weight by He's rule, fan-in (He et al. 2015); linear maps keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))


def imagenet_stem(in_channels: int, channels: int) -> nn.Sequential:
    """Make a 7x7 convolution of stride 2 with norm and ReLU, and a pooling of stride 2."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip


def make_downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Make the 1x1 convolution beside a block; None where an identity has the block's shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class WholeAvgPool2d(nn.AdaptiveAvgPool2d):
    """The mean over the whole image.

    The published network has an average pooling of that size here, whose products the study counted.
    """

    def __init__(self) -> None:
        super().__init__(1)


class StagedResNet(Network):
    """A stem, four stages, a pooling and a classifier; the downsampling 1x1 are substituted.

    Source: He et al. 2016, table 1.

    A subclass makes `stem` and the stages, and then calls `add_classifier`.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ("stem.*", "classifier")
    taps: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")
    stem: nn.Module

    def add_classifier(self, channels: int, classes: int) -> None:
        """Add the pooling and the classifier, and initialise all convolutions.

        Args:
            channels: of the last stage.
            classes: number of classes.
        """
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.stem(x)
        for stage in self.taps:
            x = self.get_submodule(stage)(x)
        return self.classifier(self.pool(x).flatten(1))
