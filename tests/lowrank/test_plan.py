"""The plan of a network: what is counted, what is kept and why, and that nothing uncountable passes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from lowrank.errors import InputError, UncountableError
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan, trace_plan

DENSE = make_method({"name": "dense"})


def small(**layers: nn.Module) -> nn.Sequential:
    """A network that starts with a 3 -> 8 convolution named `first`."""
    network = nn.Sequential()
    network.add_module("first", nn.Conv2d(3, 8, 3, padding=1))
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def test_counts_equal_the_network_itself() -> None:
    network = small(norm=nn.BatchNorm2d(8), relu=nn.ReLU(), second=nn.Conv2d(8, 6, 3, stride=2, bias=False))
    plan = trace_plan(network, (3, 9, 9))
    assert plan.params(DENSE) == sum(parameter.numel() for parameter in network.parameters())
    assert plan.mult_adds(DENSE) == 9 * 3 * 8 * 81 + 9 * 8 * 6 * 16
    assert [(site.shape.in_area, site.shape.out_area) for site in plan.sites] == [(81, 81), (81, 16)]


def test_linear_maps_count_every_position() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(5 * 3 * 6, 2))
    plan = trace_plan(network, (3, 6, 4))
    assert plan.mult_adds(DENSE) == 4 * 5 * 18 + 90 * 2
    assert [site.kept for site in plan.sites] == ["a linear map", "a linear map"]


def test_a_layer_that_runs_twice_is_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(self.stem(x)))

    plan = trace_plan(Twice(), (3, 4, 4))
    assert plan.mult_adds(DENSE) == 16 * (3 * 8 + 2 * 8 * 8)
    assert plan.params(DENSE) == 3 * 8 + 8 + 8 * 8


def test_reasons_for_what_is_kept() -> None:
    network = small(
        grouped=nn.Conv2d(8, 8, 3, groups=4),
        mirrored=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        exception=nn.Conv2d(8, 8, 1),
        free=nn.Conv2d(8, 8, 1),
        flat=nn.Flatten(),
        head=nn.Linear(8 * 49, 5),
    )
    plan = trace_plan(network, (3, 9, 9), kept=("exc*",))
    assert {site.name: site.kept for site in plan.sites} == {
        "first": "the stem",
        "grouped": "already grouped (4 groups)",
        "mirrored": "padding mode 'reflect'",
        "exception": "kept by name (exc*)",
        "free": "",
        "head": "a linear map",
    }
    assert [site.name for site in plan.substituted] == ["free"]


def test_unknown_layers_are_errors() -> None:
    with pytest.raises(UncountableError, match="`odd` is a Softshrink, which has no counting rule"):
        trace_plan(small(odd=nn.Softshrink()), (3, 9, 9))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    with pytest.raises(UncountableError, match="`gain` is a Scale, which has no counting rule"):
        trace_plan(small(gain=Scale()), (3, 9, 9))


def test_a_layer_that_never_ran_is_an_error() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    network = Partly()
    with pytest.raises(UncountableError, match=r"`spare` never ran on the image"):
        trace_plan(network, (3, 9, 9))


def test_an_empty_sequential_is_an_identity() -> None:
    plan = trace_plan(small(shortcut=nn.Sequential()), (3, 9, 9))
    assert plan.params(DENSE) == 3 * 8 * 9 + 8


def test_images_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"the network cannot take images of \(5, 9, 9\)"):
        trace_plan(small(), (5, 9, 9))


def test_tracing_leaves_the_network_as_it_was() -> None:
    network = small(norm=nn.BatchNorm2d(8)).train()
    before = network.norm.running_mean.clone()
    trace_plan(network, (3, 9, 9))
    assert network.training
    assert torch.equal(network.norm.running_mean, before)
    assert not network.first._forward_hooks


def test_counting_wrn_28_10_takes_about_a_millisecond() -> None:
    plan = network_plan(NetworkSettings(name="wrn_28_10"), (3, 32, 32), 10)
    times = []
    for step in range(1, 21):
        method = make_method({"name": "tensor_train", "dims": 3, "rank_scale": step / 20})
        start = time.perf_counter()
        plan.params(method), plan.mult_adds(method), plan.infeasible(method)
        times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 2e-3
