"""The networks by name: shapes, sizes as published, and the messages for what cannot be."""

from __future__ import annotations

import pytest
import torch

from lowrank.errors import InputError
from lowrank.networks import NetworkSettings, make_network
from lowrank.plan import network_plan


@pytest.mark.parametrize(
    ("name", "substituted", "fixed"),
    [  # RULES: substituted layers and fixed parameters
        ("wrn_16_4", 12, 48602),
        ("wrn_40_2", 36, 17882),
        ("wrn_28_10", 24, 283354),
        ("resnet9", 7, 11328),
    ],
)
def test_substituted_layers_and_fixed_parameters(name: str, substituted: int, fixed: int) -> None:
    plan = network_plan(NetworkSettings(name=name), (3, 32, 32), 10)
    assert len(plan.substituted) == substituted
    assert plan.fixed_params == fixed


@pytest.mark.parametrize(
    ("name", "image"), [("resnet9", (3, 32, 32)), ("resnet9", (1, 8, 8)), ("wrn_10_1", (3, 20, 24))]
)
def test_networks_map_images_to_logits(name: str, image: tuple[int, int, int]) -> None:
    network = make_network(NetworkSettings(name=name, width=0.25), image, 7).eval()
    assert tuple(network(torch.zeros(2, *image)).shape) == (2, 7)


def test_width_thins_the_inner_channels_only() -> None:
    network = make_network(NetworkSettings(name="wrn_16_4", width=0.5), (3, 32, 32), 10)
    assert network.classifier.in_features == 128
    assert network.stem.out_channels == 16


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("resnet10", (3, 32, 32), r"unknown network 'resnet10'; choose from: .*resnet9"),
        ("wrn_29_10", (3, 32, 32), r"the depth of a wide ResNet must be 6n \+ 4 .*, but got 29"),
        ("wrn_28_0", (3, 32, 32), "the widening factor of a wide ResNet must be at least 1, but got 0"),
        ("resnet9", (3, 4, 32), "resnet9 needs images of at least 8 x 8, but got 4 x 32"),
    ],
)
def test_impossible_networks_are_named(name: str, image: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_network(NetworkSettings(name=name), image, 10)


def test_networks_are_reproducible_from_a_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = make_network(NetworkSettings(name="resnet9", width=0.1), (3, 32, 32), 10)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
