"""Which strata a limited time of a training step leaves: it is measured, so little is asked before a study begins."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank.errors import InfeasibleError, InputError
from sweeps.space.parse import parse_space
from sweeps.trials import feasibility
from sweeps.trials.feasibility import left_out_lines, reachable_strata
from sweeps.trials.resolver import Resolver
from sweeps.trials.step_timer import StepTimer


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods whose step is measured: one of Tucker takes 1 ms, of any other 10 ms."""
    methods: list[str] = []

    def measure(timer: StepTimer, network: Any, plan: Any, sized: Any) -> float:
        methods.append(sized.name)
        return 1.0 if sized.name == "tucker" else 10.0

    monkeypatch.setattr(StepTimer, "measure", measure)
    return methods


@pytest.fixture
def resolver(content, digits):
    """Resolves a space of small networks whose step may take 5 ms."""

    def make(methods: list[str], params: Any) -> Resolver:
        budget = {"params": params, "step_ms": 5.0}
        method = {"name": {"choice": methods}, "dims": {"int": [2, 4]}}
        network = {"name": "resnet9", "width": 0.125}
        sections = {"budget": budget, "method": method, "network": network, "references": []}
        return Resolver(parse_space("small", {**content, **sections}), digits)

    return make


def test_a_budget_whose_steps_are_all_too_slow_is_refused_with_what_was_measured(resolver, measured):
    slow = resolver(["tensor_train"], {"choice": [20_000, 50_000]})
    message = r"no method can meet the budget: params <= 50,000: a training step takes 10\.00 ms on this machine, over"
    with pytest.raises(InputError, match=message):
        reachable_strata(slow.space, slow)
    assert set(measured) == {"tensor_train"}


def test_one_fast_method_is_enough(resolver, measured):
    mixed = resolver(["tensor_train", "tucker"], {"choice": [20_000, 50_000]})
    assert reachable_strata(mixed.space, mixed) == (mixed.strata, {})
    assert left_out_lines(mixed.space, mixed, {}) == []  # each network of the space would have to be measured


def test_below_a_range_of_sizes_a_smaller_network_may_be_fast_enough(resolver, measured):
    ranged = resolver(["tensor_train"], {"int": [20_000, 50_000]})
    assert reachable_strata(ranged.space, ranged) == (ranged.strata, {})
    assert 1 <= len(measured) <= len(ranged.strata)  # one look at each is enough, none at a network that was measured


def test_the_reason_is_that_of_the_smallest_network(content, digits):
    """A budget of its size would do: with two dimensions alone it would have to be larger."""
    sections = {"budget": {"params": 2_000}, "method": {"name": "tensor_train", "dims": {"int": [2, 4]}},
                "network": {"name": "resnet9", "width": 0.25}, "references": []}  # fmt: skip
    space = parse_space("small", {**content, **sections})
    smallest = {}
    for dims in (2, 3, 4):
        with pytest.raises(InfeasibleError) as caught:
            Resolver(space, digits).resolve({"method.dims": dims})
        smallest[caught.value.smallest] = dims
    size, dims = min(smallest.items())
    assert dims > 2
    with pytest.raises(
        InputError, match=rf"tensor_train \(dims {dims}\) .*: its smallest has {size:,} parameters, over"
    ):
        reachable_strata(space, Resolver(space, digits))
    larger = parse_space("small", {**content, **sections, "budget": {"params": size}})
    assert reachable_strata(larger, Resolver(larger, digits))[1] == {}


def test_measuring_ends_after_a_while(resolver, measured, monkeypatch):
    monkeypatch.setattr(feasibility, "MEASURED_SECONDS", -1)
    slow = resolver(["tensor_train", "tucker"], {"choice": [20_000, 50_000]})
    with pytest.raises(InputError, match="no method can meet the budget"):
        reachable_strata(slow.space, slow)
    assert measured == ["tensor_train"] * 2  # one network for each stratum
