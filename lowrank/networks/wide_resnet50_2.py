"""WRN-50-2: ResNet-50 with doubled inner widths (He et al. 2016; Zagoruyko and Komodakis 2016), for ImageNet."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lowrank.networks.base import Network, init_convolutions, scaled

BLOCKS = (3, 4, 6, 3)  # of each stage
CHANNELS = (128, 256, 512, 1024)  # of the 3x3 convolutions; a block gives out EXPANSION times as many
EXPANSION = 2


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions beside an identity or a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class WideResNet50(Network):
    """WRN-50-2 with inner channels `width` times the published ones; the downsampling 1x1 are substituted."""

    never_substituted: ClassVar[tuple[str, ...]] = ("stem.*", "classifier")
    taps: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, in_channels: int, classes: int, width: float = 1.0):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        previous_channels = 64
        for number, (blocks, channels) in enumerate(zip(BLOCKS, CHANNELS, strict=True), start=1):
            inner = scaled(channels, width)
            stage = [Bottleneck(previous_channels, inner, stride=1 if number == 1 else 2)]
            previous_channels = EXPANSION * inner
            stage += [Bottleneck(previous_channels, inner, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous_channels, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.stem(x)
        for stage in self.taps:
            x = self.get_submodule(stage)(x)
        return self.classifier(self.pool(x).flatten(1))
