"""Stopping rules: as Ray's where Ray has the rule, the same again when told the same again."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from sweeps.search.stopping_rules import Halving, Median, make_rule


def curves(seed: int, count: int = 30, epochs: int = 27) -> list[tuple[str, int, float]]:
    """Points of falling noisy curves, in a random order of arrival."""
    dice = random.Random(seed)
    ends = {f"t{number}": dice.uniform(2, 30) for number in range(count)}
    left = dict.fromkeys(ends, 1)
    points = []
    while left:
        name = dice.choice(list(left))
        points.append((name, left[name], ends[name] + 60 / left[name] + dice.gauss(0, 1)))
        left[name] += 1
        if left[name] > epochs:
            del left[name]
    return points


@pytest.mark.parametrize(("grace", "reduction", "brackets"), [(3, 3.0, 1), (1, 2.0, 1), (14, 3.0, 1), (1, 3.0, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_halving_decides_as_rays_asynchronous_hyperband(grace, reduction, brackets, seed):
    rule = Halving(grace, 27, reduction, brackets)
    theirs = AsyncHyperBandScheduler(
        time_attr="epoch", metric="error", mode="min", max_t=27, grace_period=grace, reduction_factor=reduction,
        brackets=brackets, stop_last_trials=False,
    )  # fmt: skip
    stopped: set[str] = set()
    for name, epoch, value in curves(seed):
        stub = SimpleNamespace(trial_id=name)
        if epoch == 1:
            theirs.on_trial_add(None, stub)
            theirs._trial_info[name] = theirs._brackets[rule.bracket(name)]  # Ray draws it by lot
        if name in stopped:
            continue
        mine = rule.report(name, epoch, value)
        assert (theirs.on_trial_result(None, stub, {"epoch": epoch, "error": value}) == "STOP") is (mine is not None)
        if mine:
            stopped.add(name)
    assert 0 < len(stopped) < 30


def test_brackets_are_used_and_belong_to_the_name():
    rule = Halving(1, 27, 3.0, brackets=3)
    used = [rule.bracket(f"t{number}") for number in range(300)]
    assert used == [Halving(1, 27, 3.0, brackets=3).bracket(f"t{number}") for number in range(300)]
    assert used.count(0) > used.count(1) > used.count(2) > 0


def test_the_median_stops_what_is_worse_than_half_of_the_others():
    rule = Median(grace=2, epochs=4)
    for name, error in (("a", 5.0), ("b", 6.0), ("c", 7.0)):
        assert all(rule.report(name, epoch, error) is None for epoch in (1, 2, 3))
    assert rule.report("worse", 1, 50.0) is None  # before the grace has passed nothing stops
    assert rule.report("worse", 2, 6.5) == "worse than the median"
    assert rule.report("better", 2, 5.5) is None
    assert rule.report("late", 4, 50.0) is None  # it has trained to its end


def test_the_median_needs_enough_others():
    rule = Median(grace=1, epochs=4)
    for name in ("a", "b"):
        rule.report(name, 1, 5.0)
    assert rule.report("c", 1, 50.0) is None


@pytest.mark.parametrize("name", ["asha", "median", "hyperband"])
def test_told_the_same_a_rule_decides_the_same(name):
    def decisions() -> list[str | None]:
        rule = make_rule(name, grace=0.25, epochs=27, reduction=3.0, brackets=3)
        return [rule.report(*point) for point in curves(5)]

    assert decisions() == decisions()
    assert any(decisions())


def test_no_rule_by_that_name():
    assert make_rule("none", grace=0.5, epochs=10, reduction=3.0, brackets=1) is None
