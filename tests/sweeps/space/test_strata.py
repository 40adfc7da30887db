"""Strata of a budget: a step stays, a boundary value belongs to one stratum, and sizes are counted without a list."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank.errors import InputError
from sweeps.space import Points, make_strata, read_space
from sweeps.space.domains import Range, parse_domain
from sweeps.space.points import MAX_GRID_POINTS, restrict_to_stratum

STEPPED = "{uniform: [0.1, 0.9, 0.02]}"


def budget(domain: str) -> Any:
    return read_space("tt_dims", [f"budget={{params: {domain}, relative_to: separable}}"])


def test_a_stepped_budget_of_many_values_keeps_its_step():
    space = budget("{uniform: [0.1, 0.9, 0.02]}")
    domain, strata = space.domains["budget.params"], make_strata(space, 1_000_000)
    allowed = set(domain.grid() or ())
    parts = [restrict_to_stratum(domain, "budget.params", stratum).grid() for stratum in strata]
    assert len(allowed) == 41
    assert len(strata) == 4
    assert sorted(value for part in parts for value in part or ()) == sorted(allowed)  # each value once


def test_an_integer_budget_has_whole_ends():
    space = read_space("tt_dims", ["budget={params: {int: [10000, 100001]}}"])
    strata = make_strata(space, 1_000_000)
    ends = [stratum.interval for stratum in strata]
    assert ends == [(10_000, 12_500), (12_501, 25_000), (25_001, 50_000), (50_001, 100_001)]


@pytest.mark.parametrize(
    "domain", ["{uniform: [0.1, 0.9]}", "{log_uniform: [0.1, 0.9]}", "{uniform: [0.1, 0.9, 0.05]}"]
)
def test_every_value_belongs_to_one_stratum(domain: str):
    space = budget(domain)
    strata = make_strata(space, 1_000_000)
    boundaries = [end for stratum in strata for end in stratum.interval]
    for value in (0.1, 0.9, *boundaries):
        assert sum(stratum.contains({"budget.params": value}) for stratum in strata) == 1


@pytest.mark.parametrize("low", [1, 1_000_000])
def test_the_size_of_a_space_is_multiplied(low: int):
    """A count of its points one by one would outlast the time limit of every test."""
    space = read_space(
        "tt_dims",
        [f"budget={{params: {{int: [{low}, 1000000000]}}}}", "train.lr={uniform: [0.1, 0.9, 1e-6]}",
         "train.weight_decay={choice: [0, 0.1]}", "search.sampler=random"],
    )  # fmt: skip
    shapes = 2 * 6  # two methods, six numbers of dimensions
    assert Points(space).size() == (1_000_000_001 - low) * 800_001 * 2 * shapes
    assert len(make_strata(space, 1_000_000)) < 32


def test_a_grid_of_too_many_points_is_one_line():
    with pytest.raises(InputError, match=f"a grid must have at most {MAX_GRID_POINTS:,} points, but this one has 3,6"):
        read_space("tt_dims", ["search.sampler=grid", "train.weight_decay={choice: [0]}", "train.lr={int: [1, 75000]}"])


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"int": [1, 2**60]}, "must be at most 2\\*\\*53 in size"),
        ({"uniform": [0, 1, 1e-12]}, "must have a step of at least 1e-09"),
        ({"choice": list(range(1001))}, "must list at most 1000 values, but got 1,001"),
        ({"choice": [1, True]}, "must list distinct"),
    ],
)
def test_a_domain_beyond_the_limits_is_one_line(domain: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        parse_domain("a", domain)


def test_values_of_a_long_range_are_found_without_a_list():
    domain = parse_domain("a", {"int": [0, 10**12]})
    assert isinstance(domain, Range)
    assert domain.value_at(0.5) == (10**12 + 1) // 2
    assert domain.sample(3) == (0, 5 * 10**11, 10**12)
