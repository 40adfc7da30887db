"""Wide residual networks (Zagoruyko and Komodakis 2016), pre-activation, without dropout."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import InputError
from lowrank.networks.base import Network, init_convolutions, scaled

# A file of anybody's may name any of them, and one is built to be counted
MAX_DEPTH, MAX_WIDEN = 1000, 128


class Block(nn.Module):
    """BN-ReLU-conv3x3 twice; the shortcut is a 1x1 convolution of the first activation where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        active = self.relu(self.norm1(x))
        out = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Network):
    """WRN-depth-k: three groups of (depth - 4) / 6 blocks with 16k, 32k and 64k channels."""

    never_substituted: ClassVar[tuple[str, ...]] = ("stem", "classifier", "*.shortcut")
    taps: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3")
    min_image_size: int = 4

    def __init__(self, in_channels: int, classes: int, depth: int, widen: int, width: float = 1.0):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"the depth of a wide ResNet must be 6n + 4 (10, 16, 22, 28, 40 ...), but got {depth}")
        if depth > MAX_DEPTH or widen > MAX_WIDEN:
            raise InputError(
                f"a wide ResNet must have at most {MAX_DEPTH} layers and a width of {MAX_WIDEN}, but got {depth} and "
                f"{widen}"
            )
        if widen < 1:
            raise InputError(f"the widening factor of a wide ResNet must be at least 1, but got {widen}")
        blocks = (depth - 4) // 6
        channels = [16, *(scaled(16 * widen * factor, width) for factor in (1, 2, 4))]
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.stage1 = self._stage(channels[0], channels[1], blocks, stride=1)
        self.stage2 = self._stage(channels[1], channels[2], blocks, stride=2)
        self.stage3 = self._stage(channels[2], channels[3], blocks, stride=2)
        self.norm = nn.BatchNorm2d(channels[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels[3], classes)
        init_convolutions(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        repeated = [Block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(in_channels, out_channels, stride), *repeated)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(self.pool(functional.relu(self.norm(x))).flatten(1))
