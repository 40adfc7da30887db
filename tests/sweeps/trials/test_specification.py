"""Specifications: sizes solved, counts exact, one id for one network."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.recipe import Recipe
from sweeps.records.specification import TrialSpec
from sweeps.space.parse import parse_space, read_space
from sweeps.space.points import Points
from sweeps.trials.resolver import Resolver
from tests.support.specifications import plain_specification

POINT = {
    "method.name": "tensor_train", "method.dims": 3, "budget.params": 0.08, "train.weight_decay": 5e-4,
}  # fmt: skip


def test_a_point_is_solved_to_its_budget_and_counted_exactly(resolver):
    trial = resolver.resolve(POINT)
    limit = int(0.08 * trial.counts["separable_params"])
    assert trial.counts["separable_params"] == 754_816
    assert 0.9 * limit < trial.counts["params"] <= limit
    plan = network_plan(NetworkSettings(), (1, 8, 8), 10)
    built = build_student(
        NetworkSettings(), plan, make_method(trial.specification.method.settings()), (1, 8, 8), 10, seed=0
    )
    assert sum(parameter.numel() for parameter in built.parameters()) == trial.counts["params"]


def test_a_specification_is_plain_data(resolver):
    specification = resolver.resolve(POINT).specification
    plain = specification.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"network", "method", "train", "views", "data", "seed"}
    assert plain["train"].keys() == Recipe.model_fields.keys()  # a later default must not change what was trained
    assert TrialSpec.parse(plain) == specification
    assert TrialSpec.parse(plain).to_json() == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epochs": -1}}, "`specification.train.epochs`: must be greater than or equal to 0, but got -1"),
        ({"colour": "red"}, "unknown field `specification.colour`; choose from: allocation, budget, data, "),
        (
            {"train": {"pace": 1}},
            "unknown field `specification.train.pace`; choose from: batch_size, ",
        ),
        ({"data": {"name": "digits"}}, "`specification.data.fingerprint` is missing"),
        ({"start": {"fingerprint": "f"}}, "`specification.start.from` is missing"),
    ],
)
def test_a_damaged_specification_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError) as caught:
        TrialSpec.parse(plain_specification(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"train.weight_decay": 1e-4}, False),
        ({"method.dims": 4}, False),
        ({"budget.params": 0.2}, False),
        ({"budget.params": 0.0800001}, True),  # the same ranks
    ],
)
def test_the_id_depends_on_what_is_built_and_trained_only(resolver, change, same):
    assert (resolver.resolve({**POINT, **change}).trial_id == resolver.resolve(POINT).trial_id) is same


def test_the_seed_and_the_data_belong_to_the_id(content, digits):
    ids = set()
    for seed in (0, 1):
        space = parse_space("small", {**content, "search": {"seed": seed}})
        ids.add(Resolver(space, digits).resolve(POINT).trial_id)
    assert len(ids) == 2


def test_an_infeasible_budget_names_the_fixed_parameters(resolver):
    with pytest.raises(InfeasibleError, match=r"over the budget of 7,548; 10,176 parameters .* are never substituted"):
        resolver.resolve({**POINT, "budget.params": 0.01})


def test_the_original_sweep_has_129_rows_and_121_networks(digits):
    space = read_space("tt_schedule")
    points = Points(space).grid()
    resolver = Resolver(space, digits)
    methods = [space.alternatives[int(point["alternative"])][0]["name"] for point in points]
    assert (methods.count("tensor_train"), methods.count("tucker")) == (57, 72)
    assert len({resolver.resolve(point).trial_id for point in points}) == 121


def test_references_are_not_solved_to_a_budget(resolver):
    reference = resolver.reference("separable")
    assert reference.counts["params"] == reference.counts["separable_params"]
    assert (reference.role, reference.stratum) == ("reference", "reference")


def test_listed_budgets_are_strata(resolver):
    assert [stratum.label for stratum in resolver.strata] == ["params <= 60,385", "params <= 150,963"]
    assert [stratum.fixed for stratum in resolver.strata] == [(("budget.params", 0.08),), (("budget.params", 0.2),)]


def test_a_budget_range_is_halved_into_strata_without_gaps(content, digits):
    content["budget"]["params"] = {"log_uniform": [0.06, 0.4]}
    strata = Resolver(parse_space("small", content), digits).strata
    shares = [stratum.interval for stratum in strata]
    assert shares[0][0] == 0.06
    assert shares[-1][1] == 0.4
    assert all(left[1] == right[0] for left, right in pairwise(shares))
    assert all(high <= 2.0001 * low for low, high in shares)


def test_unsolved_sizes_have_strata_that_halve_the_separable_size(digits):
    strata = Resolver(read_space("tt_schedule"), digits).strata
    assert [stratum.label for stratum in strata][-2:] == ["params <= 754,816", "params > 754,816"]
    assert [stratum.limit for stratum in strata][:2] == [754_816 / 32, 754_816 / 16]


def test_several_objectives_share_one_search_but_stop_within_sizes(content, digits):
    """One bracket over all sizes would stop every small network."""
    content["search"] = {"objectives": ["val_error", "params"]}
    resolver = Resolver(parse_space("small", content), digits)
    assert [stratum.label for stratum in resolver.strata] == ["all sizes"]
    small, large = (resolver.resolve({**POINT, "budget.params": share}) for share in (0.04, 0.2))
    assert (small.stratum, large.stratum) == ("params <= 47,176", "params <= 188,704")


@pytest.mark.parametrize(
    ("budget", "label", "limit"),
    [
        ({"params": 60_000}, "params <= 60,000", 60_000),
        ({"params": 0.2, "relative_to": "separable"}, "params <= 150,963", 150_963),
        ({"mult_adds": 1.0, "relative_to": "separable"}, "mult-adds <= 1 of separable", float("inf")),
    ],
)
def test_one_budget_for_all_is_one_stratum(content, digits, budget, label, limit):
    content["budget"] = budget
    resolver = Resolver(parse_space("small", content), digits)
    assert [(each.label, each.limit) for each in resolver.label_strata] == [(label, limit)]
    point = {name: value for name, value in POINT.items() if not name.startswith("budget.")}
    assert resolver.resolve(point).stratum == label


@pytest.mark.parametrize("what", [{"relative_to": "dense"}, {"relative_to": "separable"}])
def test_a_point_belongs_to_the_stratum_of_its_own_budget(content, digits, what):
    content["budget"] = {"params": {"choice": [0.05, 0.2]}, **what}
    resolver = Resolver(parse_space("small", content), digits)
    labels = [resolver.resolve({**POINT, "budget.params": share}).stratum for share in (0.05, 0.2)]
    assert labels == [stratum.label for stratum in resolver.strata]


def test_relative_budgets_refer_to_the_spaces_own_network_at_any_width(content, digits):
    content["network"] = {"width": {"choice": [0.5, 1.0]}}
    resolver = Resolver(parse_space("small", content), digits)
    for width in (0.5, 1.0):
        trial = resolver.resolve({**POINT, "network.width": width, "budget.params": 0.2})
        assert trial.stratum == "params <= 150,963"
        assert 100_000 < trial.counts["params"] <= 150_963


def test_a_stepped_budget_range_lists_its_steps(content, digits):
    content["budget"]["params"] = {"uniform": [0.1, 0.4, 0.1]}
    strata = Resolver(parse_space("small", content), digits).strata
    assert [dict(stratum.fixed)["budget.params"] for stratum in strata] == [0.1, 0.2, 0.3, 0.4]
