"""VGG-16 with batch norm (Simonyan and Zisserman 2015, configuration D), in its form for small images.

One linear map replaces the published three; `torchvision:vgg16_bn` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from lowrank.networks.base import Network, init_convolutions, scaled_channels

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Network):
    """VGG-16-BN for images of at least 32 x 32; its convolutions have a bias, as published.

    Args:
        in_channels: of the images.
        classes: number of classes.
        width: multiple of the channels.
        channels: outputs of the 13 convolutions; None as published.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ("stage1.0", "classifier")
    taps: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4", "stage5")
    min_image_size: int = 32

    def __init__(
        self, in_channels: int, classes: int, width: float = 1.0, channels: Sequence[int] | None = None
    ):  # fmt: skip
        super().__init__()
        previous_channels = in_channels
        outputs = iter(scaled_channels(sum(STAGES, ()), width, channels, "vgg16"))
        for number, stage_channels in enumerate(STAGES, start=1):
            stage: list[nn.Module] = []
            for _ in stage_channels:
                out_channels = next(outputs)
                conv = nn.Conv2d(previous_channels, out_channels, 3, padding=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
                stage += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
                previous_channels = out_channels
            self.add_module(f"stage{number}", nn.Sequential(*stage, nn.MaxPool2d(2)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous_channels, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        for stage in self.taps:
            x = self.get_submodule(stage)(x)
        return self.classifier(self.pool(x).flatten(1))
