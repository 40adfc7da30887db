"""Weights rebuilt by tntorch from the same factors are the weights of this library's layers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.layers.other_libraries import tntorch_rebuilt
from lowrank.layers import ConvShape
from lowrank.layers.registry import make_method


@pytest.mark.parametrize("name", ["tensor_train", "tucker", "cp"])
def test_tntorch_rebuilds_the_same_weight_from_the_same_factors(name: str) -> None:
    method = make_method({"name": name, "rank_scale": 0.5})
    peer = tntorch_rebuilt(method, 16, 32)  # type: ignore[arg-type]
    layer = method.build(ConvShape(16, 32))
    with torch.no_grad():
        for factor, value in zip(layer.parameters(), peer.parameters(), strict=True):
            factor.copy_(value)
    images = torch.ones(1, 16, 1, 1)
    torch.testing.assert_close(peer(images), layer(images))
