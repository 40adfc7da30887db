"""Budgets on whole networks; the contract suite holds the properties for every method."""

from __future__ import annotations

import math

import pytest

from lowrank.compression.budget import Budget, solve, solve_width
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings

IMAGE = (3, 32, 32)
MAX_COUNTS = 500  # of a network's parameters, until a method's size is found: ACDC takes 275, most about 60


@pytest.fixture(scope="module")
def wrn() -> NetworkPlan:
    """WRN-28-10 on CIFAR-10."""
    return network_plan(NetworkSettings(name="wrn_28_10"), IMAGE, 10)


def test_the_scale_is_solved_with_few_decimals(wrn: NetworkPlan) -> None:
    found = solve(wrn, make_method({"name": "tensor_train", "dims": 3}), Budget(params=664226))
    assert wrn.params(found) == 664226
    assert wrn.signature(found) == wrn.signature(make_method({"name": "tensor_train", "dims": 3, "rank_scale": 0.26}))
    assert len(str(found.rank_scale)) <= 4


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dense", "separable")])
def test_every_method_meets_700_000_parameters(wrn: NetworkPlan, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, count = [], NetworkPlan.params
    monkeypatch.setattr(NetworkPlan, "params", lambda plan, method: counted.append(method) or count(plan, method))
    found = solve(wrn, make_method({"name": name}), Budget(params=700_000))
    assert 0 < len(counted) < MAX_COUNTS
    assert 500_000 < wrn.params(found) <= 700_000


def test_integer_sizes_are_solved(wrn: NetworkPlan) -> None:
    assert solve(wrn, make_method({"name": "shuffle"}), Budget(params=823674)).groups == 4
    assert solve(wrn, make_method({"name": "shuffle"}), Budget(params=823673)).groups == 5
    assert solve(wrn, make_method({"name": "acdc"}), Budget(params=555498)).layers == 11
    assert solve(wrn, make_method({"name": "acdc"}), Budget(params=555497)).layers == 10
    assert solve(wrn, make_method({"name": "acdc"}), Budget(mult_adds=800_000_000)).layers == 6


def test_both_limits_hold(wrn: NetworkPlan) -> None:
    budget = Budget(params=700_000, mult_adds=120_000_000)
    found = solve(wrn, make_method({"name": "bottleneck"}), budget)
    assert budget.exceeded(wrn, found) is None
    larger = found.with_scale(math.nextafter(found.rank_scale + 1 / 640, 1))
    assert budget.exceeded(wrn, larger) is not None


def test_a_method_of_one_size_is_kept_or_refused(wrn: NetworkPlan) -> None:
    separable = make_method({"name": "separable"})
    assert solve(wrn, separable, Budget(params=wrn.params(separable))) == separable
    with pytest.raises(
        InfeasibleError, match=r"separable has no setting within the budget in wrn_28_10: .* 4,380,138 "
    ):
        solve(wrn, separable, Budget(params=wrn.params(separable) - 1))


def test_a_budget_below_what_is_never_substituted_says_so(wrn: NetworkPlan) -> None:
    with pytest.raises(
        InfeasibleError, match=r"over the budget of 100,000; 283,354 parameters and .* never substituted"
    ):
        solve(wrn, make_method({"name": "hashed_full", "bias": True}), Budget(params=100_000))


def test_no_limit_gives_the_largest(wrn: NetworkPlan) -> None:
    assert solve(wrn, make_method({"name": "tucker", "rank_scale": 0.1}), Budget()).rank_scale == 1.0


@pytest.mark.parametrize("name", ["dense", "separable"])
def test_the_thinner_network_is_solved_to_the_same_budget(name: str) -> None:
    network, method, budget = NetworkSettings(name="resnet9"), make_method({"name": name}), Budget(params=300_000)
    thin = solve_width(network, IMAGE, 10, method, budget)
    plan = network_plan(thin, IMAGE, 10)
    assert 0.9 * 300_000 < plan.params(method) <= 300_000
    steps = sorted((channels + 0.5) / channel for channel in (64, 128, 256, 512) for channels in range(channel))
    above = next(step for step in steps if step > thin.width) + 1e-7
    wider = network_plan(network.model_copy(update={"width": above}), IMAGE, 10)
    if wider.shapes == plan.shapes:  # `width` itself lies before its step's end
        above = next(step for step in steps if step > above) + 1e-7
        wider = network_plan(network.model_copy(update={"width": above}), IMAGE, 10)
    assert wider.params(method) > 300_000


def test_a_wide_budget_keeps_the_width() -> None:
    network = NetworkSettings(name="resnet9", width=0.5)
    assert solve_width(network, IMAGE, 10, make_method({"name": "dense"}), Budget()).width == 1.0


def test_a_network_cannot_be_thinner_than_one_channel() -> None:
    network = NetworkSettings(name="resnet9")
    with pytest.raises(
        InfeasibleError, match=r"resnet9 has no width within the budget: .* parameters, over the budget of 20"
    ):
        solve_width(network, IMAGE, 10, make_method({"name": "dense"}), Budget(params=20))
