"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al. 2018, table 2), for ImageNet."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lowrank.networks.base import Network, init_convolutions, scaled

# Expansion, channels, blocks, stride of each stage
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280
DROPOUT = 0.2


def unit(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm and ReLU6."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )  # fmt: skip
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without an activation; beside an identity where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.same = stride == 1 and in_channels == out_channels
        self.expand = nn.Sequential(*(unit(in_channels, inner) if expansion > 1 else []))
        self.depthwise = nn.Sequential(*unit(inner, inner, 3, stride, groups=inner))
        self.project = nn.Sequential(nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.same else out


class MobileNetV2(Network):
    """MobileNetV2 of the given `width`; its classifier is substituted, its depthwise layers never are."""

    never_substituted: ClassVar[tuple[str, ...]] = ("stem.*", "*.depthwise.*")
    linear_maps: ClassVar[tuple[str, ...]] = ("classifier",)
    taps: ClassVar[tuple[str, ...]] = ("stages.1", "stages.2", "stages.4", "stages.6")  # where the stride ends

    def __init__(self, in_channels: int, classes: int, width: float = 1.0):
        super().__init__()
        previous_channels = scaled(STEM, width)
        self.stem = nn.Sequential(*unit(in_channels, previous_channels, 3, stride=2))
        stages = []
        for expansion, published, blocks, first_stride in STAGES:
            channels, stage = scaled(published, width), []
            for block in range(blocks):
                stage.append(
                    InvertedResidual(previous_channels, channels, first_stride if block == 0 else 1, expansion)
                )
                previous_channels = channels
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(*unit(previous_channels, scaled(LAST, width)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(scaled(LAST, width), classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.pool(self.last(self.stages(self.stem(x)))).flatten(1)
        return self.classifier(self.dropout(x))
