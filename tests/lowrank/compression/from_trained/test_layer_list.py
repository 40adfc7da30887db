"""Factors that a file names are put where they fit, and refused where they do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrank.compression import build_chains
from lowrank.errors import InputError
from lowrank.layers import KernelChain

SVD = {"method": "spatial_svd", "ranks": [3], "bias": True}


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))


def test_named_layers_are_replaced_and_the_others_stay(network):
    last = copy.deepcopy(network[3].state_dict())
    build_chains(network, {"0": SVD})
    assert isinstance(network[0], KernelChain)
    assert list(network[0].ranks) == [3]
    assert all(torch.equal(network[3].state_dict()[name], tensor) for name, tensor in last.items())
    assert network(torch.zeros(2, 4, 4, 4)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("9", {}, "`9` must be a convolution or linear map of Sequential"),
        ("1", {}, "`1` must be a convolution or linear map of Sequential"),
        ("0", {"method": "cp"}, "unknown field `method.ranks`; choose from: dims, name, rank_scale"),
        ("0", {"ranks": [3, 4]}, r"`0`: `ranks` must be 1 numbers of at least 1 \(rank\), but got \(3, 4\)"),
        ("0", {"ranks": [0]}, r"`0`: `ranks` must be 1 numbers of at least 1 \(rank\), but got \(0,\)"),
        ("0", {"method": "spatial_sv"}, "unknown method 'spatial_sv'"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_the_layer(network, name, changes, message):
    with pytest.raises(InputError, match=message):
        build_chains(network, {name: {**SVD, **changes}})
