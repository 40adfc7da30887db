"""ResNet-18 (He et al. 2016, table 1): eight basic blocks in four stages.

With the published stem it is torchvision's `resnet18`; with the small one it has the usual form for images of CIFAR's
size.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lowrank.networks.base import StagedResNet, imagenet_stem, make_downsample, scaled

Stem = Literal["imagenet", "small"]
BLOCKS = 2  # of each stage
CHANNELS = (64, 128, 256, 512)  # of each stage; the stem has those of the first
MIN_IMAGE_SIZE: dict[Stem, int] = {"imagenet": 32, "small": 8}  # one position is left in the last stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of which the first carries the stride, beside an identity or a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet18(StagedResNet):
    """ResNet-18 with channels `width` times the published ones; the downsampling 1x1 are substituted.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiple of the published channels, the stem's included.
        stem: "imagenet", a 7x7 convolution of stride 2 and a pooling; "small", a 3x3 convolution of stride 1.
    """

    def __init__(self, in_channels: int, classes: int, width: float = 1.0, stem: Stem = "imagenet"):
        super().__init__()
        self.min_image_size = MIN_IMAGE_SIZE[stem]
        channels = [scaled(published, width) for published in CHANNELS]
        if stem == "small":
            first = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
            self.stem = nn.Sequential(first, nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True))
        else:
            self.stem = imagenet_stem(in_channels, channels[0])
        previous_channels = channels[0]
        for name, stage_channels in zip(self.taps, channels, strict=True):
            stage = [BasicBlock(previous_channels, stage_channels, stride=1 if name == "stage1" else 2)]
            stage += [BasicBlock(stage_channels, stage_channels, stride=1) for _ in range(BLOCKS - 1)]
            self.add_module(name, nn.Sequential(*stage))
            previous_channels = stage_channels
        self.add_classifier(previous_channels, classes)
