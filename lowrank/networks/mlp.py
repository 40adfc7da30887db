"""A small multilayer perceptron, all of whose linear maps but the last are substituted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.networks.base import Network, scaled
from lowrank.networks.images import ImageShape

HIDDEN = (512, 512)


class MLP(Network):
    """Flattened image, hidden layers with batch norm and ReLU, classes; for images of one fixed shape.

    Args:
        image_shape: (C, H, W).
        classes: number of classes.
        width: multiple of the outputs of hidden layers.
        hidden: outputs of the hidden layers.
        inputs: how many entries of the flattened image are read; None for all. The buffer `selected` says which.
    """

    selected: Tensor | None

    never_substituted: ClassVar[tuple[str, ...]] = ("classifier",)
    linear_maps: ClassVar[tuple[str, ...]] = ("hidden.*",)

    def __init__(
        self, image_shape: ImageShape, classes: int, width: float = 1.0, hidden: Sequence[int] = HIDDEN,
        inputs: int | None = None,
    ):  # fmt: skip
        super().__init__()
        in_features = math.prod(image_shape)
        if inputs is not None and inputs > in_features:
            raise InputError(f"`inputs` of an mlp must be at most {in_features}, its pixels, but got {inputs}")
        self.register_buffer("selected", None if inputs is None else torch.arange(inputs))
        in_features = inputs or in_features
        layers: list[nn.Module] = []
        for channels in (scaled(published, width) for published in hidden):
            linear = nn.Linear(in_features, channels, bias=False)
            nn.init.normal_(linear.weight, std=math.sqrt(2 / in_features))
            layers += [linear, nn.BatchNorm1d(channels), nn.ReLU(inplace=True)]
            in_features = channels
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        x = x.flatten(1)
        if self.selected is not None:
            x = x.index_select(1, self.selected)
        return self.classifier(self.hidden(x))
