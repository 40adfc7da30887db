"""DARTS: 20 cells of the searched genotype `DARTS_V2` (Liu, Simonyan and Yang 2019, "DARTS"), for small images.

Every separable or dilated convolution of the published network is here the K x K convolution whose separable form it
is. So the published network is this one with the method `separable` in every site, and that is the base which is
compressed.

Letters: B batch, I in-channels, C channels of a cell, K kernel size.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.networks.base import DropPath, Network, init_convolutions, scaled

# DARTS_V2: the operation of each edge of a cell, and the state that it reads; two edges are added to one new state.
Edge = tuple[str, int]
NORMAL: tuple[Edge, ...] = (
    ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
    ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
)  # fmt: skip
REDUCTION: tuple[Edge, ...] = (
    ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
    ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
)  # fmt: skip
STATES = 4  # new states of a cell, which are its output
CELLS, CHANNELS, STEM_MULTIPLIER = 20, 36, 3
REDUCING = (CELLS // 3, 2 * CELLS // 3)
AUXILIARY_IMAGE = 32  # least image that the auxiliary head's 5x5 pooling can take


class ConvUnit(nn.Sequential):
    """ReLU, convolution, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, dilation: int = 1):
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=dilation * (kernel // 2), dilation=dilation,
            bias=False,
        )  # fmt: skip
        super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(out_channels))


class FactorizedReduce(nn.Module):
    """Halves the image by two 1x1 convolutions of stride 2, the second shifted by one pixel."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        active = self.relu(x)
        odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        shifted = (functional.pad(active, odd) if any(odd) else active)[:, :, 1:, 1:]
        return self.norm(torch.cat([self.conv1(active), self.conv2(shifted)], dim=1))


def make_edge(kind: str, channels: int, stride: int) -> nn.Module:
    """Make the module of one edge."""
    if kind == "sep_conv_3x3":
        return nn.Sequential(ConvUnit(channels, channels, 3, stride), ConvUnit(channels, channels, 3))
    if kind == "dil_conv_3x3":
        return ConvUnit(channels, channels, 3, stride, dilation=2)
    if kind == "max_pool_3x3":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    assert kind == "skip_connect", kind
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


class Cell(nn.Module):
    """Reads the outputs of the two cells before it; its output is its four new states, joined along the channels."""

    def __init__(self, before: tuple[int, int], channels: int, reduces: bool, halved_before: bool):
        super().__init__()
        adapt = FactorizedReduce if halved_before else ConvUnit
        self.preprocess0, self.preprocess1 = adapt(before[0], channels), ConvUnit(before[1], channels)
        edges = REDUCTION if reduces else NORMAL
        self.reads = tuple(state for _, state in edges)
        self.edges = nn.ModuleList(
            make_edge(kind, channels, stride=2 if reduces and state < 2 else 1) for kind, state in edges
        )
        self.drop_path = DropPath()

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """Two outputs (B, I, H, W) -> (B, STATES * C, H', W')."""
        states = [self.preprocess0(before), self.preprocess1(last)]
        for new in range(STATES):
            first, second = (self._edge(2 * new + side, states) for side in (0, 1))
            states.append(first + second)
        return torch.cat(states[2:], dim=1)

    def _edge(self, index: int, states: list[Tensor]) -> Tensor:
        """Compute edge `index`; an identity is never dropped."""
        edge = self.edges[index]
        out = edge(states[self.reads[index]])
        return out if isinstance(edge, nn.Identity) else self.drop_path(out)


class AuxiliaryHead(nn.Sequential):
    """A second classifier on the 8 x 8 states after two thirds of the cells, for training only."""

    def __init__(self, in_channels: int, classes: int):
        super().__init__(
            nn.ReLU(), nn.AvgPool2d(5, stride=3), nn.Conv2d(in_channels, 128, 1, bias=False), nn.BatchNorm2d(128),
            nn.ReLU(), nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(768, classes),
        )  # fmt: skip


class DARTS(Network):
    """The CIFAR network of DARTS, 36 * `width` channels, for images of at least 8 x 8 (32 x 32 with `auxiliary`).

    With `auxiliary`, the output is (logits, auxiliary logits) in training and logits in evaluation.
    """

    never_substituted: ClassVar[tuple[str, ...]] = ("stem.*", "classifier", "auxiliary.*")
    taps: ClassVar[tuple[str, ...]] = ("cells.5", "cells.12", "cells.19")  # the last cell before the image is halved
    base: ClassVar[Literal["dense", "separable"]] = "separable"
    min_image_size: int = 8

    def __init__(self, in_channels: int, classes: int, width: float = 1.0, auxiliary: bool = False):
        super().__init__()
        channels = scaled(CHANNELS, width)
        stem = STEM_MULTIPLIER * channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.cells = nn.ModuleList()
        before = (stem, stem)
        for index in range(CELLS):
            channels *= 2 if index in REDUCING else 1
            self.cells.append(Cell(before, channels, index in REDUCING, halved_before=index - 1 in REDUCING))
            before = (before[1], STATES * channels)
            if index == REDUCING[1]:
                self.auxiliary = AuxiliaryHead(before[1], classes) if auxiliary else None
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before[1], classes)
        if auxiliary:
            self.min_image_size = AUXILIARY_IMAGE
        init_convolutions(self)

    def set_drop_path(self, rate: float) -> None:
        """Set the probability to drop a path in training; raises InputError outside 0 <= rate < 1."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.set_rate(rate)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, classes), in training with the auxiliary head (logits, auxiliary logits)."""
        before = last = self.stem(x)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before, last = last, cell(before, last)
            if index == REDUCING[1] and self.training and self.auxiliary is not None:
                auxiliary = self.auxiliary(last)
        logits = self.classifier(self.pool(last).flatten(1))
        return logits if auxiliary is None else (logits, auxiliary)
