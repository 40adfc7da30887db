"""Domains: what a space file may write, and the one-line error of a mistake."""

from __future__ import annotations

import optuna
import pytest

from lowrank.errors import InputError
from sweeps.space.domains import Choice, Range, is_domain, parse_domain


@pytest.mark.parametrize(
    ("written", "corners", "grid"),
    [
        ({"choice": ["a", "b"]}, ("a", "b"), ("a", "b")),
        ({"choice": [True, False]}, (True, False), (True, False)),
        ({"int": [2, 4]}, (2, 4), (2, 3, 4)),
        ({"int": [2, 9, 3]}, (2, 9), (2, 5, 8)),
        ({"log_int": [8, 512]}, (8, 512), None),
        ({"uniform": [0.1, 0.5]}, (0.1, 0.5), None),
        ({"uniform": [0.05, 0.95, 0.45]}, (0.05, 0.95), (0.05, 0.5, 0.95)),
        ({"log_uniform": [1e-5, 1e-2]}, (1e-5, 1e-2), None),
    ],
)
def test_domains_have_the_written_ends_and_values(written, corners, grid):
    domain = parse_domain("train.x", written)
    assert domain.corners() == corners
    assert domain.grid() == grid


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"choice": []}, r"`train.x`: `choice` must be a list that is not empty, but got \[\]"),
        ({"choice": [1, 1]}, "distinct numbers, texts, true, false or null"),
        ({"int": [2]}, r"must be \[low, high\] or \[low, high, step\] of numbers"),
        ({"int": [2, 4.5]}, "whole numbers"),
        ({"int": [4, 2]}, "must have low <= high"),
        ({"uniform": [0, float("nan")]}, "of numbers"),
        ({"log_uniform": [0, 1]}, "above 0"),
        ({"log_uniform": [0.1, 1, 0.1]}, r"must be \[low, high\] of numbers"),
        ({"uniform": [0, 1, 0]}, "a step above 0"),
        ({"uniform": "0-1"}, "must be a list"),
    ],
)
def test_a_wrong_domain_gives_one_line(written, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_domain("train.x", written)
    assert "\n" not in str(caught.value)


def test_the_study_grid_has_19_exact_rank_scales():
    grid = parse_domain("method.rank_scale", {"uniform": [0.05, 0.95, 0.05]}).grid()
    assert grid is not None
    assert len(grid) == 19
    assert grid[-1] == 0.95
    assert all(value == round(value, 2) for value in grid)


def test_optuna_stays_within_the_domain():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        trial = study.ask()
        assert Choice(("a", "b")).suggest(trial, "c") in ("a", "b")
        assert Range(2, 8, 2, integer=True).suggest(trial, "i") in (2, 4, 6, 8)
        assert 1e-5 <= Range(1e-5, 1e-2, log=True).suggest(trial, "l") <= 1e-2
        study.tell(trial, 0.0)


def test_only_the_five_written_forms_are_domains():
    assert is_domain({"choice": [1]})
    assert not is_domain({"choice": [1], "int": [1, 2]})
    assert not is_domain({"choises": [1]})
    assert not is_domain([1, 2])
