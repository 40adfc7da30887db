"""Budgets shared unevenly: groups, sizes solved exactly for any network, method and weights, and the disk's bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lowrank.compression.allocation import Allocation, make_allocation
from lowrank.compression.budget import Budget, measure, solve, solve_allocation, solve_width
from lowrank.compression.file_size import FileSizeCalculator
from lowrank.compression.plan import NetworkPlan
from lowrank.compression.size_families import _Continuous, make_family
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan, network_to_count, trace_plan
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings

IMAGE = (1, 8, 8)
METHODS = ("bottleneck", "tensor_train", "tucker", "cp", "hashed", "shuffle", "acdc", "monarch")


@pytest.fixture(scope="module")
def plan() -> NetworkPlan:
    return network_plan(NetworkSettings(width=0.25), IMAGE, 10)


def disk_of(settings_: NetworkSettings, plan: NetworkPlan) -> FileSizeCalculator:
    return FileSizeCalculator(network_to_count(settings_, IMAGE, 10), plan)


def test_stages_follow_the_names_or_else_the_areas(plan):
    assert [group.name for group in plan.groups("stage")] == ["stage1", "stage2", "stage3"]
    assert [len(group.sites) for group in plan.groups("stage")] == [3, 1, 3]
    assert len(plan.groups("layer")) == len(plan.substituted) == 7
    darts = network_plan(NetworkSettings(name="darts"), (3, 32, 32), 10)
    assert [group.name for group in darts.groups("stage")] == ["area1024", "area256", "area64"]
    for sharing in ("even", "stage", "layer"):
        assert sum(len(group.sites) for group in darts.groups(sharing)) == 240


@pytest.mark.parametrize("name", METHODS)
def test_equal_weights_of_one_scale_are_the_even_network(plan, name):
    method, budget = make_method({"name": name}), Budget(params=25_000)
    even = solve(plan, method, budget)
    shared = solve_allocation(plan, method, budget, "layer", {})
    assert isinstance(shared, Allocation)
    assert plan.params(shared) <= 25_000
    if method.scale is not None:
        assert plan.signature(shared) == plan.signature(even)


def test_only_ratios_of_weights_matter_and_a_heavier_stage_is_larger(plan):
    method, budget = make_method({"name": "bottleneck"}), Budget(params=25_000)
    one = solve_allocation(plan, method, budget, "stage", {"stage1": 2.0, "stage3": 0.5})
    other = solve_allocation(plan, method, budget, "stage", {"stage1": 4.0, "stage2": 2.0, "stage3": 1.0})
    assert plan.signature(one) == plan.signature(other)
    scales = [each.rank_scale for each in one.methods]
    assert scales[0] > scales[1] > scales[2]


@pytest.mark.parametrize("name", METHODS)
def test_an_allocated_network_is_built_as_counted_and_read_back(plan, name):
    found = solve_allocation(plan, make_method({"name": name}), Budget(params=25_000), "stage", {"stage2": 3.0})
    network = build_student(NetworkSettings(width=0.25), plan, found, IMAGE, 10, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == plan.params(found)
    again = make_allocation(plan.groups("stage"), found.settings())
    assert plan.signature(again) == plan.signature(found)
    assert network(torch.zeros(2, *IMAGE)).shape == (2, 10)


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"stage9": 1.0}, "unknown group of resnet9 by stage 'stage9'"), ({"stage1": 0.0}, "must be a number above 0")],
)
def test_a_wrong_weight_is_refused(plan, weights, message):
    with pytest.raises(InputError, match=message):
        solve_allocation(plan, make_method({"name": "cp"}), Budget(params=25_000), "stage", weights)


def test_settings_of_other_groups_are_refused(plan):
    with pytest.raises(InputError, match="must name each of the groups stage1, stage2, stage3 once, but got stage1"):
        make_allocation(plan.groups("stage"), {"stage1": {"name": "cp"}})


@st.composite
def networks(draw) -> NetworkPlan:
    """A random chain of convolutions with norms, some strided, as a plan."""
    widths = draw(st.lists(st.integers(4, 24), min_size=2, max_size=5))
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
    for before, after in pairwise(widths):
        kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
        layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=draw(st.booleans()))]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return trace_plan(nn.Sequential(*layers), (3, 12, 12), name="chain")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    networks(), st.sampled_from(["bottleneck", "tensor_train", "tucker", "cp", "hashed", "acdc", "shuffle"]),
    st.sampled_from(["even", "stage", "layer"]), st.sampled_from(["params", "mult_adds"]),
    st.lists(st.floats(0.1, 10), min_size=5, max_size=5), st.floats(0, 1.2),
)  # fmt: skip
def test_what_is_solved_is_feasible_and_the_next_larger_would_exceed(plan, name, sharing, what, weights, share):
    method = make_method({"name": name})
    named = dict(zip([group.name for group in plan.groups(sharing)], weights, strict=False))
    try:
        family = make_family(plan, method, sharing, named)
    except InfeasibleError:
        return  # the method stands in no size somewhere (ACDC between odd widths)
    by_work = what == "mult_adds"
    fewest = measure(what, plan, family.smallest(by_work=by_work), None)
    limit = int(share * (plan.params if what == "params" else plan.mult_adds)(make_method({"name": "dense"})))
    budget = Budget(**{what: limit})
    if limit < fewest:
        with pytest.raises(InfeasibleError, match="has no setting within the budget in chain: its smallest has"):
            solve_allocation(plan, method, budget, sharing, named)
        return
    found = solve_allocation(plan, method, budget, sharing, named)
    assert measure(what, plan, found, None) <= limit
    assert plan.infeasible(found) is None
    if isinstance(family, _Continuous):
        _check_next_larger(plan, family, found, what, limit)


def _check_next_larger(plan, family, found, what, limit) -> None:
    """Every size of the family along a fine grid is the solved one, a smaller one, or one over the limit."""
    size = measure(what, plan, found, None)
    for step in range(400):
        factor = family.low + (family.high - family.low) * (step / 399) ** 3
        reached = measure(what, plan, family.at(factor), None)
        assert reached <= size or reached > limit


def test_bytes_are_solved_to_the_file_that_is_written(plan, tmp_path):
    from safetensors.torch import save_file

    settings_ = NetworkSettings(width=0.25)
    disk = disk_of(settings_, plan)
    found = solve(plan, make_method({"name": "tensor_train", "dims": 3}), Budget(bytes=60_000), disk)
    network = build_student(settings_, plan, found, IMAGE, 10, seed=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    written = (tmp_path / "weights.safetensors").stat().st_size
    assert written == measure("bytes", plan, found, disk) <= 60_000
    steps = [found.with_scale(found.rank_scale + step / 1000) for step in range(1, 200)]
    larger = next(each for each in steps if plan.params(each) > plan.params(found))
    assert measure("bytes", plan, larger, disk) > 60_000


def test_all_limits_hold_together_and_the_gap_is_of_the_one_that_binds(plan):
    settings_ = NetworkSettings(width=0.25)
    disk = disk_of(settings_, plan)
    budget = Budget(params=25_000, mult_adds=100_000, bytes=120_000)
    found = solve(plan, make_method({"name": "bottleneck"}), budget, disk)
    assert budget.exceeded(plan, found, disk) is None
    shares = {what: measure(what, plan, found, disk) / getattr(budget, what) for what in ("params", "mult_adds")}
    assert shares["mult_adds"] > shares["params"]
    assert budget.gap(plan, found, disk) == 100_000 - plan.mult_adds(found)


def test_bytes_without_a_disk_are_a_mistake_of_the_caller(plan):
    with pytest.raises(ValueError, match="needs `disk`"):
        solve(plan, make_method({"name": "cp"}), Budget(bytes=1))


def test_a_window_that_a_method_of_few_sizes_misses_names_the_nearest(plan):
    sizes = sorted({plan.params(each) for each in make_method({"name": "shuffle"}).settings_by_size(dict(plan.shapes))})
    low, high = sizes[1], sizes[2]
    budget = Budget(params=high - 1, params_min=low + 1)
    with pytest.raises(
        InfeasibleError, match=f"has no setting that reaches the budget .* has {low:,} parameters, under"
    ):
        solve(plan, make_method({"name": "shuffle"}), budget)
    assert plan.params(solve(plan, make_method({"name": "shuffle"}), Budget(params=high - 1))) == low


def test_what_is_never_substituted_is_the_reason_where_it_is(plan):
    wrn = network_plan(NetworkSettings(name="wrn_28_10"), (3, 32, 32), 10)
    with pytest.raises(InfeasibleError, match=r"283,354 parameters .* never substituted, so 100,000 parameters cannot"):
        solve(wrn, make_method({"name": "bottleneck"}), Budget(params=100_000))
    with pytest.raises(InfeasibleError, match=r"over the budget of 1,000,000$"):
        solve(wrn, make_method({"name": "separable"}), Budget(params=1_000_000))


def test_a_thinner_network_may_be_asked_for_in_bytes_and_in_a_window():
    network, dense = NetworkSettings(width=0.25), make_method({"name": "dense"})
    thin = solve_width(network, IMAGE, 10, dense, Budget(bytes=100_000))
    plan = network_plan(thin, IMAGE, 10)
    assert 80_000 < disk_of(thin, plan).measure(dense).bytes <= 100_000
    with pytest.raises(InfeasibleError, match="resnet9 has no width that reaches the budget"):
        solve_width(network, IMAGE, 10, dense, Budget(params=20_000, params_min=19_999))


def test_an_allocated_model_is_saved_and_loaded(plan, tmp_path):
    from lowrank.io.model_file import load_model, save_model

    network = NetworkSettings(width=0.25)
    found = solve_allocation(plan, make_method({"name": "bottleneck"}), Budget(params=25_000), "stage", {"stage2": 3.0})
    model = build_student(network, plan, found, IMAGE, 10, seed=0).eval()
    save_model(tmp_path / "model.safetensors", model, network=network, method=found, image_shape=IMAGE, classes=10)
    assert plan.settings(found)["allocation"] == {"by": "stage", "methods": found.settings()}
    images = torch.randn(2, *IMAGE)
    assert torch.equal(load_model(tmp_path / "model.safetensors")(images), model(images))
    with pytest.raises(
        InputError,
        match=r"an allocation must say `by` \(even, stage, layer, energy, sensitivity\) and `methods`, but got 3",
    ):
        plan.sized({}, {"by": 3, "methods": {}})
