"""Of the points that cannot be trained, each method shows the reason at its largest budget."""

from __future__ import annotations

from sweeps.records.reasons import reasons_by_method


def test_the_reason_at_the_largest_budget_stands_for_all_of_a_method():
    infeasible = [
        ({"method.name": "cp", "budget.params": 0.1}, "needs 20"),
        ({"method.name": "cp", "budget.params": 0.4}, "needs 50"),
        ({"method.name": "cp", "budget.params": 0.2}, "needs 30"),
        ({"method.name": "acdc", "budget.mult_adds": 7}, "must divide"),
        ({"alternative": "thin"}, "too thin"),
    ]
    assert reasons_by_method(infeasible) == {"needs 50": 3, "must divide": 1, "too thin": 1}


def test_without_a_budget_the_first_reason_is_shown():
    assert reasons_by_method([({"method.name": "cp"}, "first"), ({"method.name": "cp"}, "second")]) == {"first": 2}
    assert reasons_by_method([]) == {}
