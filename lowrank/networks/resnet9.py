"""ResNet-9 (the "cifar10-fast" net of the tensor-train sweep): 3x3 convolutions, two residual pairs, a global pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from lowrank.networks.base import Network, init_convolutions, scaled_channels

OUTPUT_SCALE = 0.125
# Outputs of the stem, the first stage and inside its pair, the second stage, the third stage and inside its pair
CHANNELS = (64, 128, 128, 256, 512, 512)


class ConvUnit(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, and a 2x2 max pooling when asked."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False):
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two ConvUnits, with `inner` channels between them, beside an identity."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.first, self.second = ConvUnit(channels, inner), ConvUnit(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x + self.second(self.first(x))


class ResNet9(Network):
    """ResNet-9 of base width 64 * `width` for images of at least 8 x 8.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiple of the channels.
        channels: in the order of CHANNELS; None as published.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ("stem.*", "classifier")
    taps: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3")
    min_image_size: int = 8

    def __init__(
        self, in_channels: int, classes: int, width: float = 1.0, channels: Sequence[int] | None = None
    ):  # fmt: skip
        super().__init__()
        c1, c2, inner2, c3, c4, inner4 = scaled_channels(CHANNELS, width, channels, "resnet9")
        self.stem = ConvUnit(in_channels, c1)
        self.stage1 = nn.Sequential(ConvUnit(c1, c2, pool=True), Residual(c2, inner2))
        self.stage2 = ConvUnit(c2, c3, pool=True)
        self.stage3 = nn.Sequential(ConvUnit(c3, c4, pool=True), Residual(c4, inner4))
        # As published, the 4x4 that 32 x 32 pixels leave; for other images what then remains
        self.pool = nn.Sequential(nn.MaxPool2d(4, ceil_mode=True), nn.AdaptiveMaxPool2d(1))
        self.classifier = nn.Linear(c4, classes, bias=False)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1)) * OUTPUT_SCALE
