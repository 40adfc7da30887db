"""Passes that store what comes before a layer give the same as whole passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.compression.from_trained.moments import LayerOutputs, collect_all_moments, collect_moments, layer_calls
from lowrank.compression.from_trained.replay import Replay, count_calls


class Residual(nn.Module):
    """Convolutions with in-place ReLUs, one of them on what is added again, and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.relu, self.twice = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(self.relu(x))  # the ReLU changes what is added
        x = self.twice(self.second(x).relu_()).relu()
        return self.last(self.twice(x).mean((2, 3)))


def network_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Residual().eval(), torch.randn(6, 3, 5, 5)


@torch.no_grad()
def test_stored_outputs_change_nothing() -> None:
    network, images = network_and_images()
    expected = network(images)
    replay = Replay(network, count_calls(network, images[:1]), limit=1e9)
    for _ in range(2):
        for name in ("first", "second", "last"):
            with replay.before(name, 0):
                torch.testing.assert_close(network(images), expected, rtol=0, atol=0)


@torch.no_grad()
def test_stored_modules_do_not_run_again_and_the_others_do() -> None:
    network, images = network_and_images()
    replay = Replay(network, count_calls(network, images[:1]), limit=1e9)
    runs: list[str] = []
    for name in ("stem.0", "first", "second", "twice"):
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: runs.append(name))
    with replay.before("second", 0):
        network(images)
    runs.clear()
    network.second.weight.mul_(2)
    with replay.before("last", 0):
        doubled = network(images)
    assert "stem.0" not in runs, "the whole stem is stored"
    torch.testing.assert_close(doubled, network(images), rtol=0, atol=0)


@torch.no_grad()
def test_nothing_is_stored_beyond_the_limit() -> None:
    network, images = network_and_images()
    replay = Replay(network, count_calls(network, images[:1]), limit=0)
    with replay.before("last", 0):
        network(images)
    assert not replay._outputs
    outputs = LayerOutputs(limit=images.numel() * 4.0)
    outputs.store("small", images)
    outputs.store("large", images)
    assert outputs.of("small") is not None
    assert outputs.of("large") is None


@torch.no_grad()
def test_one_pass_gives_the_moments_and_outputs_of_every_layer() -> None:
    network, images = network_and_images()
    outputs = LayerOutputs(limit=1e9)
    names = ("stem.0", "first", "twice", "last")
    parts: list[str] = []
    moments = collect_all_moments(network, names, images.split(3), outputs, parts.append)
    order = ("stem.0", "first", "twice", "twice", "last")
    assert parts == [f"batch {batch + 1}, {name}" for batch in range(len(images.split(3))) for name in order]
    for name in names:
        layer, calls = network.get_submodule(name), 2 if name == "twice" else 1
        pairs = [pair for part in images.split(3) for pair in layer_calls(network, layer, part, calls)]
        alone = collect_moments(layer, pairs)  # type: ignore[arg-type]
        torch.testing.assert_close(moments[name].xx, alone.xx, rtol=0, atol=0)
        torch.testing.assert_close(moments[name].y_mean, alone.y_mean, rtol=0, atol=0)
        stored = outputs.of(name)
        assert stored is not None
        for (_, expected), output in zip(pairs, stored, strict=True):
            torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_a_change_of_an_early_layer_is_seen_after_a_late_one_was_visited():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    images = torch.randn(3, 4)
    replay = Replay(network, count_calls(network, images[:1]), 1e9)
    for target in ("0", "2", "4"):  # what a first method does
        with torch.no_grad(), replay.before(target, 0):
            network(images)
    network[0] = nn.Linear(4, 4)  # a second one begins at the first layer again
    with torch.no_grad():
        expected = network(images)
        with replay.before("0", 0):
            assert torch.equal(network(images), expected)


@torch.no_grad()
def test_a_forward_that_was_set_on_a_module_is_there_afterwards():
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    network[1].forward = torch.relu
    images = torch.randn(3, 4)
    expected = network(images)
    replay = Replay(network, count_calls(network, images[:1]), 1e9)
    for _ in range(2):
        with replay.before("2", 0):
            assert torch.equal(network(images), expected)
        assert vars(network[1])["forward"] is torch.relu
        assert "forward" not in vars(network[0])
