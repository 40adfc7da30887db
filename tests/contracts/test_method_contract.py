"""Every method's counts are those of its layer, budgets are solved exactly, infeasible settings give a reason."""

from __future__ import annotations

import math
from itertools import pairwise

import method_table
import pytest
from hypothesis import given, settings, strategies as st
from method_table import METHOD_CONTRACTS, Case

from lowrank.compression.budget import Budget, solve
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers.base_method import ConvShape, Method
from lowrank.layers.registry import METHODS, make_method


def plan_of(shapes: list[ConvShape], fixed: int = 0) -> NetworkPlan:
    """Make a plan of these convolutions, all of them substituted, and `fixed` other parameters."""
    sites = [Site(f"conv{k}", shape, "", 0, 0) for k, shape in enumerate(shapes)]
    return NetworkPlan("plan", tuple(sites), fixed)


@method_table.over_cases(method_table.cases())
def test_count_equals_the_built_layer(case: Case) -> None:
    built = sum(parameter.numel() for parameter in case.build().parameters())
    assert case.method.params(case.shape) == built


@method_table.over_cases(method_table.cases())
def test_mult_adds_are_whole_and_grow_with_the_area(case: Case) -> None:
    small = case.method.mult_adds(case.shape._replace(in_area=16, out_area=16))
    large = case.method.mult_adds(case.shape._replace(in_area=64, out_area=64))
    assert isinstance(small, int)
    assert large == pytest.approx(4 * small, abs=4)
    assert small >= 1


@pytest.mark.parametrize("case", method_table.cases(feasible=False), ids=str)
def test_infeasible_settings_have_a_reason_with_the_value(case: Case) -> None:
    reason = case.method.infeasible(case.shape)
    assert reason
    assert "\n" not in reason
    assert any(character.isdigit() for character in reason), "the reason names the value received"
    plan = plan_of([case.shape])
    assert plan.infeasible(case.method) == f"{case.method.name}: {reason}"


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_checked_in_one_line(name: str) -> None:
    refused = METHOD_CONTRACTS[name].refused
    with pytest.raises(InputError, match=rf"`method\.{next(iter(refused))}`") as caught:
        make_method({"name": name, **refused})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_unknown_fields_list_the_choices(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown field `method\.colour`; choose from: .*name"):
        make_method({"name": name, "colour": "red"})


def test_unknown_method_lists_the_choices() -> None:
    with pytest.raises(InputError, match=r"unknown method 'tensor_trains'; choose from: .*tensor_train"):
        make_method({"name": "tensor_trains"})


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_frozen_and_survive_a_round_trip(name: str) -> None:
    for entry in METHOD_CONTRACTS[name].settings:
        method = method_table.method(name, entry)
        assert make_method(method.model_dump()) == method
        with pytest.raises(ValueError, match="frozen"):
            method.name = "other"


def smallest_and_largest(plan: NetworkPlan, method: Method) -> tuple[int, int]:
    """Return the parameters of the smallest and the largest network of any size of `method`."""
    if method.scale is None:
        settings = list(method.settings_by_size([shape for shape, _ in plan.shapes]))
    else:
        settings = [method.with_scale(step / 64) for step in range(1, 65)]
    counts = [plan.params(one) for one in settings if plan.infeasible(one) is None]
    return min(counts), max(counts)


def next_larger(plan: NetworkPlan, method: Method) -> Method | None:
    """Return `method` at the first scale that builds a larger network; None if there is none."""
    low, high = getattr(method, str(method.scale)), 1.0
    same = plan.signature(method)
    if plan.signature(method.with_scale(high)) == same:
        return None
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if plan.signature(method.with_scale(middle)) == same else (low, middle)
    assert high == math.nextafter(low, math.inf)
    return method.with_scale(high)


channels = st.sampled_from([3, 4, 7, 8, 12, 16, 24, 32, 61, 64])
shapes = st.builds(
    lambda i, o, kernel, area: ConvShape(i, o, (kernel, kernel), in_area=area, out_area=area),
    channels, channels, st.sampled_from([1, 3]), st.sampled_from([1, 16, 64]),
)  # fmt: skip


@pytest.mark.parametrize("method", list(method_table.all_settings()), ids=repr)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(found=st.lists(shapes, min_size=1, max_size=4), share=st.floats(0, 1), fixed=st.integers(0, 500))
def test_the_largest_setting_within_a_budget_is_found(
    method: Method, found: list[ConvShape], share: float, fixed: int
) -> None:
    largest = method if method.scale is None else method.with_scale(1.0)
    plan = plan_of([shape for shape in found if largest.infeasible(shape) is None], fixed)
    least, most = smallest_and_largest(plan, method)
    budget = Budget(params=round(least + share * (most - least)))
    solved = solve(plan, method, budget)
    assert plan.infeasible(solved) is None
    assert plan.params(solved) <= budget.params
    if method.scale is not None:
        larger = next_larger(plan, solved)
        assert larger is None or plan.params(larger) > budget.params
    else:
        others = method.settings_by_size([shape for shape, _ in plan.shapes])
        fitting = [plan.params(one) for one in others if plan.infeasible(one) is None]
        assert plan.params(solved) == max(count for count in fitting if count <= budget.params)


@pytest.mark.parametrize("method", list(method_table.all_settings()), ids=repr)
def test_a_budget_that_is_too_small_names_the_smallest_size(method: Method) -> None:
    plan = plan_of([ConvShape(16, 32, (3, 3)), ConvShape(32, 32, (3, 3))], fixed=100)
    least, _ = smallest_and_largest(plan, method)
    with pytest.raises(
        InfeasibleError, match=r"has no setting within the budget in plan: .* parameters, over the budget of 5; 100 "
    ):
        solve(plan, method, Budget(params=5))
    assert plan.params(solve(plan, method, Budget(params=least))) <= least


@pytest.mark.parametrize("method", list(method_table.all_settings()), ids=repr)
def test_a_budget_on_mult_adds_holds(method: Method) -> None:
    plan = plan_of([ConvShape(16, 32, (3, 3), in_area=64, out_area=64), ConvShape(32, 32, in_area=64, out_area=64)])
    largest = plan.mult_adds(solve(plan, method, Budget()))
    assert plan.mult_adds(solve(plan, method, Budget(mult_adds=largest))) <= largest
    with pytest.raises(InfeasibleError, match="mult-adds, over the budget of 10"):
        solve(plan, method, Budget(mult_adds=10))


@pytest.mark.parametrize("method", [one for one in method_table.all_settings() if one.scale], ids=repr)
def test_counts_never_fall_as_the_scale_grows(method: Method) -> None:
    for shape in method_table.SHAPES:
        sizes = [method.with_scale(step / 40) for step in range(1, 41)]
        counts = [(size.params(shape), size.mult_adds(shape)) for size in sizes if size.infeasible(shape) is None]
        for smaller, larger in pairwise(counts):
            assert smaller[0] <= larger[0]
            assert smaller[1] <= larger[1]


@pytest.mark.parametrize("method", list(method_table.all_settings()), ids=repr)
def test_equal_signatures_mean_equal_counts(method: Method) -> None:
    if method.scale is None:
        return
    shape = ConvShape(16, 32, (3, 3))
    counts: dict[tuple, int] = {}
    for step in range(1, 101):
        size = method.with_scale(step / 100)
        if size.infeasible(shape) is None:
            assert counts.setdefault(size.signature(shape), size.params(shape)) == size.params(shape)
