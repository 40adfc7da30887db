"""Where networks of any kind are compared with their teacher: where the maps change size, or at ends of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank.distillation.losses import attention_map
from lowrank.distillation.teacher import default_taps, tap_sizes
from lowrank.errors import InputError


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU(inplace=True))


class Convolutional(nn.Module):
    """Three sizes of maps, and a pooled map of one position that says nothing of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = block(3, 4)
        self.layer1 = nn.Sequential(block(4, 8, 2), block(8, 8))
        self.layer2 = block(8, 8, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.layer2(self.layer1(self.entry(x)))).flatten(1))


class Transformer(nn.Module):
    """Four blocks over 16 tokens."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(depth))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for each_block in self.blocks:
            x = x + each_block(x)
        return self.head(x.mean(1))


def test_taps_are_the_last_modules_before_maps_change_their_size():
    network = Convolutional().train()
    assert default_taps(network, (3, 16, 16)) == ("entry", "layer1", "layer2")
    assert tap_sizes(network, default_taps(network, (3, 16, 16)), (3, 16, 16)) == ((16, 16), (8, 8), (4, 4))
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(("depth", "ends"), [(2, (0, 1)), (4, (1, 2, 3)), (6, (1, 3, 5))])
def test_taps_of_a_transformer_are_evenly_spaced_ends_of_its_blocks(depth, ends):
    network = Transformer(depth)
    taps = default_taps(network, (3, 16, 16))
    assert taps == tuple(f"blocks.{end}" for end in ends)
    assert tap_sizes(network, taps, (3, 16, 16)) == ((16, 1),) * len(ends)


def test_attention_of_tokens_is_that_of_a_column_of_positions():
    tokens = torch.randn(2, 6, 4)
    assert torch.allclose(attention_map(tokens), tokens.square().mean(2)[:, :, None])


def test_a_network_without_maps_names_no_taps():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match=r"compares maps at the ends of stages, and in \w+ none can be"):
        default_taps(network, (3, 2, 2))
    with pytest.raises(InputError, match=r"compares maps at the ends of stages, and in \w+ none can be"):
        default_taps(Convolutional())
