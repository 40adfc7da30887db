"""Rebuilding weights in the backward pass gives the same numbers to the bit and stores no intermediate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.layers import saved_memory
from benchmarks.layers.saved_memory import saved_bytes
from benchmarks.measurement import Options
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.layers import ConvShape, StructuredMap
from lowrank.layers.base_layer import checkpoint_rebuild
from lowrank.layers.linear import build_linear
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

torch.set_num_threads(1)
SHAPE = ConvShape(8, 16, (3, 3), (2, 2), (1, 1), bias=True)


def values_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    found = module(x)
    return [found, *torch.autograd.grad(found.square().sum(), [x, *module.parameters()])]


def both(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    return module, checkpoint_rebuild(copy.deepcopy(module))


@pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_values_and_gradients_are_the_same_to_the_bit(name, linear):
    torch.manual_seed(0)
    method = make_method({"name": name})
    module = build_linear(method, ConvShape(16, 32, bias=True)) if linear else method.build(SHAPE)
    kept, again = both(module)
    x = torch.randn(2, 16) if linear else torch.randn(2, 8, 7, 6)
    for left, right in zip(values_and_gradients(kept, x), values_and_gradients(again, x), strict=True):
        assert torch.equal(left, right)
    with torch.no_grad():
        assert torch.equal(kept(x), again(x))


def test_the_same_under_autocast():
    kept, again = both(make_method({"name": "tensor_train"}).build(SHAPE))
    x = torch.randn(2, 8, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = zip(values_and_gradients(kept, x), values_and_gradients(again, x), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_it_is_switched_on_and_off_for_every_map():
    network = make_method({"name": "hashed_both"}).build(SHAPE)
    parts = [part for part in network.modules() if isinstance(part, StructuredMap)]
    assert [part.rebuild_checkpoint for part in parts] == [False, False]
    assert checkpoint_rebuild(network) is network
    assert [part.rebuild_checkpoint for part in parts] == [True, True]
    checkpoint_rebuild(network, False)
    assert [part.rebuild_checkpoint for part in parts] == [False, False]


@pytest.mark.parametrize(
    "settings", [{"name": "acdc", "layers": 8}, {"name": "tensor_train", "dims": 2}, {"name": "cp"}, {"name": "hashed"}]
)
def test_no_intermediate_of_a_rebuild_is_stored(settings):
    kept, again = both(make_method(settings).build(ConvShape(64, 64)))
    x = torch.randn(1, 64, 2, 2, requires_grad=True)
    assert saved_bytes(kept, x) >= 4 * 64 * 64
    assert saved_bytes(again, x) == 0


def test_a_linear_map_stores_only_its_weight():
    kept, again = both(build_linear(make_method({"name": "acdc", "layers": 4}), ConvShape(64, 64)))
    x = torch.randn(3, 64, requires_grad=True)
    assert saved_bytes(kept, x) > 2 * 4 * 64 * 64
    assert saved_bytes(again, x) == 4 * 64 * 64


def test_the_rebuild_runs_twice_and_the_convolution_once(monkeypatch):
    module = checkpoint_rebuild(make_method({"name": "tensor_train"}).build(ConvShape(16, 16)))
    rebuilds: list[int] = []
    weight = type(module).compute_weight
    monkeypatch.setattr(type(module), "compute_weight", lambda self: rebuilds.append(1) or weight(self))
    with torch.profiler.profile() as profile:
        module(torch.randn(2, 16, 4, 4)).sum().backward()
    assert len(rebuilds) == 2
    ran = {event.key: event.count for event in profile.key_averages()}
    assert ran["aten::_convolution"] == 1


def test_a_compiled_layer_gives_the_same():
    kept, again = both(make_method({"name": "tensor_train"}).build(SHAPE))
    x = torch.randn(2, 8, 7, 6)
    torch._dynamo.reset()
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    for left, right in zip(values_and_gradients(kept, x), values_and_gradients(compiled, x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=64))


def test_a_recipe_with_it_trains_to_the_same_weights(data):
    settings, method = NetworkSettings(width=0.125), make_method({"name": "tucker"})
    plan = network_plan(settings, data.image_shape, 10)
    states = []
    for on in (False, True):
        network = build_student(settings, plan, method, data.image_shape, 10, 0)
        recipe = Recipe(epochs=1, batch_size=16, rebuild_checkpoint=on)
        run = Trainer(
            network, data, recipe, augmentation=default_augmentation("digits", data.image_shape), order_seed=0
        )
        assert {part.rebuild_checkpoint for part in network.modules() if isinstance(part, StructuredMap)} == {on}
        run.train_epoch()
        states.append(run.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_benchmark_measures_each_method_both_ways():
    found = saved_memory.run(Options(quick=True))
    rows = found.tables[0].rows
    assert [row["rebuild"] for row in rows] == ["kept", "checkpointed"] * 3
    for kept, again in zip(rows[::2], rows[1::2], strict=True):
        assert kept["saved MB"] > again["saved MB"] > 0
        assert kept["peak MB"] is None
        assert min(kept["step ms"], again["step ms"]) > 0
