"""Trials of a trained network: ranks by what they cost, references that continue it, ids that say how it starts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lowrank.compression.budget import Budget
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import make_method
from sweeps.execution.initial_weights import set_initial_weights
from sweeps.records.names import RANK_COSTS_FILE
from sweeps.records.specification import identify
from sweeps.space.parse import parse_space
from sweeps.trials.build import make_student
from sweeps.trials.feasibility import reachable_strata
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher
from tests.support.specifications import change

WEIGHTS = Path(__file__).resolve().parents[2] / "data" / "digits_resnet9.safetensors"
CONTENT: dict[str, Any] = {
    "question": "How small?", "data": {"name": "digits"},
    "network": {"name": "resnet9", "width": 0.0625, "substitute_all": True},
    "start": {"how": "in_order", "weights": str(WEIGHTS), "calibration": 96, "scratch_train": {"epochs": 5}},
    "train": {"epochs": 2}, "method": {"name": "spatial_svd", "bias": True},
    "budget": {"params": 0.5, "relative_to": "dense", "allocation": "energy"},
    "references": ["unchanged", "dense", "separable", "thin_dense", "tensor_train"],
}  # fmt: skip
DENSE = 26_268


def resolver(data: Any, **sections: Any) -> Resolver:
    return Resolver(parse_space("small", {**copy.deepcopy(CONTENT), **sections}), data)


@pytest.fixture(scope="module")
def halving(digits) -> Resolver:
    return resolver(digits)


def test_ranks_fill_the_budget_and_layers_differ(halving):
    trial = halving.resolve({})
    assert 0.95 * DENSE / 2 < trial.counts["params"] <= DENSE / 2
    ranks = {tuple(method.settings().get("ranks") or ()) for method in trial.specification.allocation.methods.values()}
    assert len(ranks) > 2
    assert trial.specification.allocation.by == "energy"
    assert trial.specification.start.how == "in_order"
    assert identify(trial.specification, (1, 8, 8), 10)[0] == trial.trial_id


def test_measuring_says_how_far_it_is(digits, capsys):
    resolver(digits).rank_allocator.costs("spatial_svd", "energy")
    output, lines = capsys.readouterr()
    assert output == ""
    assert lines.splitlines()[:2] == [
        "measuring what ranks of spatial_svd cost in the variance of outputs, layer by layer",
        "calibrating 8 layers on 72 images",
    ]
    assert lines.splitlines()[2].startswith("calibrated in ")
    assert "ranks of spatial_svd: 1 of 8" in lines


def test_costs_are_kept_with_the_study_and_not_measured_again(halving, digits, tmp_path):
    halving.use_folder(tmp_path)
    trial = halving.resolve({})
    assert json.loads((tmp_path / RANK_COSTS_FILE).read_text())
    resumed = resolver(digits)
    resumed.use_folder(tmp_path)
    resumed.rank_allocator._measure = None  # type: ignore[assignment, method-assign]  # it would fail
    assert resumed.resolve({}).trial_id == trial.trial_id
    (tmp_path / RANK_COSTS_FILE).write_text("{")
    with pytest.raises(
        InputError, match=r"rank_costs.json is damaged .* sets it aside, and what ranks cost is measured"
    ):
        resumed.use_folder(tmp_path)


def test_a_limit_on_bytes_is_met(halving):
    method = halving.space.alternatives[0]
    sized = halving.rank_allocator.solve(
        halving.plan(halving.space.network).sized({"name": method[0]["name"]}), "energy", Budget(bytes=60_000), {},
        halving.file_size(halving.space.network),
    )  # fmt: skip
    size = halving.file_size(halving.space.network).measure(sized).bytes
    assert 50_000 < size <= 60_000


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(params=1_000), r"1,000 parameters in \w+: the least size is [\d,]+ parameters, of which [\d,]+ are"),
        (Budget(mult_adds=900), r"900 mult-adds in \w+: the least size is [\d,]+ parameters and [\d,]+ mult-adds,"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_met_is_refused_with_the_least_size_before_costs_are_measured(budget, message, digits):
    unmeasured = resolver(digits)
    allocator, method = unmeasured.rank_allocator, make_method({"name": "spatial_svd"})
    allocator._measure = None  # type: ignore[assignment, method-assign]  # it would fail
    with pytest.raises(InfeasibleError, match=message) as error:
        allocator.solve(method, "energy", budget, {}, None)
    assert f"the least size is {error.value.smallest:,} parameters" in str(error.value)


def test_the_least_size_that_is_named_can_be_reached(halving):
    allocator, method = halving.rank_allocator, make_method({"name": "spatial_svd"})
    with pytest.raises(InfeasibleError) as error:
        allocator.solve(method, "energy", Budget(params=1_000), {}, None)
    smallest = allocator.solve(method, "energy", Budget(params=error.value.smallest), {}, None)
    assert halving.plan(halving.space.network).params(smallest) == error.value.smallest


def test_of_several_methods_the_smallest_size_is_named_before_costs_are_measured(digits):
    several = resolver(
        digits, method={"name": {"choice": ["spatial_svd", "tucker2"]}, "bias": True}, search={"sampler": "grid"},
        budget={**CONTENT["budget"], "params": 0.01},
    )  # fmt: skip
    several.rank_allocator._measure = None  # type: ignore[assignment, method-assign]  # it would fail
    sizes = {}
    for name in ("spatial_svd", "tucker2"):
        with pytest.raises(InfeasibleError) as error:
            several.resolve({"method.name": name})
        sizes[name] = error.value.smallest
    assert sizes["tucker2"] < sizes["spatial_svd"]
    with pytest.raises(InputError, match=rf"tucker2 has no ranks .* the least size is {sizes['tucker2']:,} parameters"):
        reachable_strata(several.space, several)


def test_a_layers_weight_moves_parameters_to_it(halving):
    allocator, plan = halving.rank_allocator, halving.plan(halving.space.network)
    method, budget, layer = plan.sized({"name": "spatial_svd"}), Budget(params=DENSE // 4), plan.layers[-1]
    plain, weighed = (allocator.solve(method, "energy", budget, weights, None) for weights in ({}, {layer.name: 100.0}))
    assert layer.params(weighed.by_site[layer.name]) > layer.params(plain.by_site[layer.name])


def test_references_are_the_network_as_it_is_continued_thinner_and_from_scratch(halving):
    trials, lines = halving.references()
    assert not lines
    found = {trial.point["method.name"]: trial.specification for trial in trials}
    epochs = {name: specification.train.epochs for name, specification in found.items()}
    assert epochs == {"unchanged": 0, "dense": 2, "separable": 2, "thin_dense": 5, "tensor_train": 5}
    assert {name for name, specification in found.items() if specification.start} == {
        "unchanged", "dense", "separable"
    }  # fmt: skip
    assert all(not specification.network.substitute_all for specification in found.values())
    again = {trial.point["method.name"]: trial.trial_id for trial in halving.references(repeat=1)[0]}
    first = {trial.point["method.name"]: trial.trial_id for trial in trials}
    assert again["unchanged"] == first["unchanged"]
    assert again["dense"] != first["dense"]


def test_the_id_says_how_a_trial_starts_but_not_for_how_long_the_network_was_trained(halving, digits):
    ids = {}
    for how in ("dense", "outputs", "in_order"):
        ids[how] = resolver(digits, start={**CONTENT["start"], "how": how}, budget={
            "params": 0.5, "relative_to": "dense"}).resolve({}).trial_id  # fmt: skip
    assert len(set(ids.values())) == 3
    specification = change(halving.resolve({}).specification, start={"epochs": 20})
    assert identify(specification, (1, 8, 8), 10)[0] == halving.resolve({}).trial_id


def test_no_epochs_are_one_trial_whatever_the_rate_and_need_no_teacher(digits):
    space = parse_space("small", {
        **copy.deepcopy(CONTENT), "teacher": {"weights": "start"},
        "train": {"epochs": {"choice": [0, 1]}, "kd_weight": 0.9, "lr": {"choice": [0.01, 0.1]}},
    })  # fmt: skip
    both = Resolver(space, digits, resolve_teacher(space, digits, Path("teachers")))
    untrained = [both.resolve({"train.epochs": 0, "train.lr": lr}) for lr in (0.01, 0.1)]
    assert untrained[0].trial_id == untrained[1].trial_id
    assert untrained[0].specification.teacher is None
    trained = both.resolve({"train.epochs": 1, "train.lr": 0.1}).specification
    assert trained.teacher.name == "itself"
    assert (trained.teacher.network.name, trained.teacher.network.width) == ("resnet9", 0.0625)


@pytest.mark.parametrize("how", ["dense", "outputs", "in_order"])
def test_every_start_reports_the_errors_of_its_layers(digits, tmp_path, how):
    trial = resolver(digits, start={**CONTENT["start"], "how": how}, budget={
        "params": 0.5, "relative_to": "dense"}).resolve({})  # fmt: skip
    student, _ = make_student(trial.specification, digits)
    layers = set_initial_weights(student, trial.specification, digits, str(tmp_path))
    assert {layer["name"] for layer in layers} >= {"stage2.0", "stage3.0.0"}
    assert all(layer["weight_error"] >= 0 and 0 <= layer["output_error"] < 3 for layer in layers)
    assert {layer.get("method") for layer in layers} <= {"spatial_svd", None}


def test_a_teacher_is_any_file_of_weights_and_checked_when_the_space_is_read(digits, tmp_path):
    def content(**teacher: Any) -> dict[str, Any]:
        return {
            **copy.deepcopy(CONTENT), "start": "scratch", "budget": {"params": 0.5, "relative_to": "dense"},
            "references": [], "teacher": teacher, "train": {"epochs": 1, "kd_weight": 0.5},
        }  # fmt: skip

    space = parse_space("small", content(weights=str(WEIGHTS), width=0.0625))
    with pytest.raises(InputError, match=r"`teacher.unchecked: true` accepts it"):
        resolve_teacher(space, digits, tmp_path)
    space = parse_space("small", content(weights=str(WEIGHTS), width=0.25, unchecked=True))
    with pytest.raises(InputError, match=r"`teacher.weights`: .* do not fit ResNet9"):
        resolve_teacher(space, digits, tmp_path)
    space = parse_space("small", content(weights=str(WEIGHTS), unchecked=True))
    teacher = resolve_teacher(space, digits, tmp_path)
    assert teacher is not None
    assert teacher.name == "digits_resnet9"
    assert not teacher.weights.load().training
