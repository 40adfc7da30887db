"""WRN-50-2: ResNet-50 with doubled inner widths (He et al. 2016; Zagoruyko and Komodakis 2016), for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn

from lowrank.networks.base import StagedResNet, WholeAvgPool2d, imagenet_stem, make_downsample, scaled

BLOCKS = (3, 4, 6, 3)  # of each stage
CHANNELS = (128, 256, 512, 1024)  # of the 3x3 convolutions; a block gives out EXPANSION times as many
EXPANSION = 2
STEM_CHANNELS = 64


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
        self.downsample = make_downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class WideResNet50(StagedResNet):
    """WRN-50-2 with inner channels `width` times the published ones; the downsampling 1x1 are substituted."""

    def __init__(self, in_channels: int, classes: int, width: float = 1.0):
        super().__init__()
        self.stem = imagenet_stem(in_channels, STEM_CHANNELS)
        previous_channels = STEM_CHANNELS
        for number, (blocks, channels) in enumerate(zip(BLOCKS, CHANNELS, strict=True), start=1):
            inner = scaled(channels, width)
            stage = [Bottleneck(previous_channels, inner, stride=1 if number == 1 else 2)]
            previous_channels = EXPANSION * inner
            stage += [Bottleneck(previous_channels, inner, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.add_classifier(previous_channels, classes)
        self.pool = WholeAvgPool2d()
