"""A small multilayer perceptron: two hidden layers, all of whose linear maps but the last are substituted."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from lowrank.networks.base import Network, scaled
from lowrank.networks.images import ImageShape

HIDDEN = (512, 512)


class MLP(Network):
    """Flattened image, 512 * `width` twice with batch norm and ReLU, classes; for images of one fixed shape."""

    never_substituted: ClassVar[tuple[str, ...]] = ("classifier",)
    linear_maps: ClassVar[tuple[str, ...]] = ("hidden.*",)

    def __init__(self, image_shape: ImageShape, classes: int, width: float = 1.0):
        super().__init__()
        in_features = math.prod(image_shape)
        layers: list[nn.Module] = []
        for channels in (scaled(published, width) for published in HIDDEN):
            linear = nn.Linear(in_features, channels, bias=False)
            nn.init.normal_(linear.weight, std=math.sqrt(2 / in_features))
            layers += [linear, nn.BatchNorm1d(channels), nn.ReLU(inplace=True)]
            in_features = channels
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        return self.classifier(self.hidden(x.flatten(1)))
