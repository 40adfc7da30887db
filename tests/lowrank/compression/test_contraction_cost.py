"""Both real costs of a decomposition: rebuilding as torch counts it, contraction orders as found by trying all."""

from __future__ import annotations

import re
from functools import reduce
from itertools import combinations
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank.compression.contraction_cost import (
    Operand,
    TensorNetwork,
    best_contraction,
    make_tensor_network,
    real_cost,
    rebuild_cost,
    split_sides,
)
from lowrank.layers import ConvShape
from lowrank.layers.registry import make_method
from lowrank.layers.tensor.cp import column_products

torch.set_num_threads(1)  # tiny layers

CHANNELS = [(16, 16), (8, 24), (12, 18), (7, 13), (64, 32), (1, 6), (20, 20)]
DECOMPOSITIONS = [
    {"name": name, "dims": dims, "rank_scale": scale}
    for name in ("tensor_train", "tucker", "cp")
    for dims, scale in ((2, 0.5), (3, 0.4), (4, 0.9), (6, 1.0))
]
every_decomposition = pytest.mark.parametrize(
    "settings", DECOMPOSITIONS, ids=lambda each: "-".join(map(str, each.values()))
)


@every_decomposition
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_rebuilding_costs_what_the_layer_runs(settings: dict, channels: tuple[int, int]) -> None:
    method = make_method(settings)
    layer = method.build(ConvShape(*channels))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer.compute_weight()
    counted = rebuild_cost(method, *channels)
    if settings["name"] == "cp":  # the columns' products are entry by entry, which torch does not count
        sizes, rank = method.structure(*channels)
        counted -= rank * sum(
            prod(half[:end])
            for half in (sizes[: layer.join_position], sizes[layer.join_position :])
            for end in range(2, len(half) + 1)
        )
    assert counted == counter.get_total_flops() / 2


def tensor_of(layer: nn.Module, name: str) -> Tensor:
    """The tensor of a layer that a network calls factor2, piece2, core2 or (joined) core2+3."""
    kind, numbers = re.fullmatch(r"([a-z]+)([\d+]+)", name).groups()
    cores = [int(number) - 1 for number in numbers.split("+")]
    if kind in ("factor", "piece"):
        return (layer.basis if kind == "factor" else layer.core)[cores[0]]
    if hasattr(layer, "columns"):
        return column_products([layer.columns[k] for k in cores])
    if hasattr(layer, "basis"):
        return reduce(joined, [layer.basis[k] @ layer.core[k] for k in cores])
    return reduce(joined, [layer.cores[k] for k in cores])


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Two neighbouring cores as one."""
    return torch.tensordot(left, right, dims=1)


@every_decomposition
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_the_named_tensors_are_the_layer(settings: dict, channels: tuple[int, int]) -> None:
    """Contracting them as their indices say gives what the layer's weight gives."""
    method = make_method(settings)
    layer = method.build(ConvShape(*channels)).double()
    network = make_tensor_network(method, *channels, positions=5)
    x = torch.randn(5, channels[0], dtype=torch.float64)
    letters = {name: chr(ord("a") + k) for k, name in enumerate(sorted(network.sizes))}
    inputs = ["".join(letters[name] for name in operand.indices) for operand in network.operands]
    outputs = [name for operand in network.operands[1:] for name in operand.indices if name in network.outputs]
    equation = ",".join(inputs) + "->" + letters["p"] + "".join(letters[name] for name in outputs)
    shaped = x.reshape([network.sizes[name] for name in network.operands[0].indices])
    tensors = [
        tensor_of(layer, operand.name).reshape([network.sizes[name] for name in operand.indices])
        for operand in network.operands[1:]
    ]
    found = torch.einsum(equation, shaped, *tensors).reshape(5, -1)
    torch.testing.assert_close(found, x @ layer.compute_weight().T)


def cheapest(tensors: tuple[frozenset, ...], sizes: dict[str, int], outputs: frozenset) -> int:
    """The least cost by trying every pair at every step."""
    if len(tensors) == 1:
        return 0
    costs = []
    for one, other in combinations(range(len(tensors)), 2):
        rest = [tensor for k, tensor in enumerate(tensors) if k not in (one, other)]
        union = tensors[one] | tensors[other]
        joined = union & frozenset().union(outputs, *rest)
        costs.append(prod(sizes[name] for name in union) + cheapest((*rest, joined), sizes, outputs))
    return min(costs)


@pytest.mark.parametrize("settings", DECOMPOSITIONS[:3] + DECOMPOSITIONS[4:5] + DECOMPOSITIONS[8:11], ids=str)
@pytest.mark.parametrize("channels", [(16, 16), (12, 18), (7, 13)], ids=str)
@pytest.mark.parametrize("positions", [1, 50])
def test_the_best_order_is_that_of_trying_all(settings: dict, channels: tuple[int, int], positions: int) -> None:
    network = make_tensor_network(make_method(settings), *channels, positions)
    large = {name: size for name, size in network.sizes.items() if size > 1}
    tensors = tuple(frozenset(operand.indices) & large.keys() for operand in network.operands)
    found = best_contraction(network)
    assert found.mult_adds == cheapest(tensors, large, network.outputs & large.keys())
    assert 0 <= found.without_x <= found.mult_adds


def test_an_order_by_hand() -> None:
    """A 16 x 16 map of ranks 3: x of 100 positions meets 4, then 4, then 16 entries of it."""
    network = make_tensor_network(make_method({"name": "tensor_train", "dims": 2, "rank_scale": 0.2}), 16, 16, 100)
    assert best_contraction(network).mult_adds == 100 * 16 * 3 * 2
    assert best_contraction(network).order == "((x core2) core1)"
    dear = make_tensor_network(make_method({"name": "tensor_train", "dims": 2, "rank_scale": 1.0}), 16, 16, 100)
    rebuilt = best_contraction(dear)
    assert (rebuilt.order, rebuilt.without_x) == ("(x (core1 core2))", 16**3)
    assert rebuilt.mult_adds == 16**3 + 100 * 256


def test_an_index_that_three_tensors_share_is_summed_last() -> None:
    sizes = {"p": 700, "i1": 3, "i2": 5, "o": 20, "r": 4}
    operands = [("x", "p", "i1", "i2"), ("a", "i1", "r"), ("b", "i2", "r"), ("c", "o", "r")]
    network = TensorNetwork(
        tuple(Operand(name, tuple(indices)) for name, *indices in operands), sizes, frozenset({"p", "o"})
    )
    assert best_contraction(network).mult_adds == 3 * 5 * 4 + 700 * (3 * 5 * 4 + 20 * 4)


@pytest.mark.parametrize(
    ("sizes", "channels", "expected"),
    [
        ((40, 40, 32), (160, 320), (1, 2)),  # 40 divides 320; 32 divides 160; the second core holds 8 x 5
        ((25, 32, 32, 16), (640, 640), (0, 3)),
        ((16, 16), (16, 16), (1, 1)),
        ((4, 1), (1, 4), (2, 2)),
        ((1, 1, 4), (1, 4), (3, 3)),
    ],
)
def test_sides_of_a_train(sizes: tuple[int, ...], channels: tuple[int, int], expected: tuple[int, int]) -> None:
    assert split_sides(sizes, *channels) == expected


def test_real_costs_hold_the_depthwise_part_and_both_shares() -> None:
    shape = ConvShape(160, 320, (3, 3), in_area=256, out_area=64)
    cost = real_cost(make_method({"name": "tensor_train", "dims": 3, "rank_scale": 0.26}), shape)
    depthwise = 9 * 160 * 64
    assert cost.rebuilt_image == depthwise + 160 * 320 * 64
    assert cost.contracted_image == depthwise + 64 * (160 * 8 + 5 * 8 * 10 * 8 + 320 * 10)
    assert (cost.contracted_once, cost.order) == (0, "(((x core3) core2) core1)")
    assert cost.rebuilt_once == 40 * 10 * 40 * 8 + 160 * 320 * 8
    assert real_cost(make_method({"name": "bottleneck"}), shape) is None
