"""Factors are the fields in which trials can differ, but for those that follow from others."""

from __future__ import annotations

from analysis.stats.factors import factor_values, shared_factors, varying_factors
from tests.support.synthetic_data import trial


def test_what_follows_from_the_budget_is_left_out():
    record = trial("abcd", 100, 5.0, method="tensor_train", dims=3, scale=0.31)
    assert factor_values(record)["method.rank_scale"] == "0.31"
    record.counts["budget_gap"] = 4
    record.stratum = "params <= 104"
    values = factor_values(record)
    assert "method.rank_scale" not in values  # solved
    assert values["method.dims"] == "3"  # a choice
    assert values["budget"] == '"params <= 104"'


def test_seeds_are_no_factor_and_methods_are():
    records = [trial("a", 100, 5.0, seed=1), trial("b", 100, 6.0, seed=2, method="tucker")]
    values = [factor_values(record) for record in records]
    assert varying_factors(values) == ["method.name"]


def test_a_field_that_always_comes_with_a_method_is_part_of_it():
    cp, cp_again, tucker = ({"method.name": name, "method.dims": dims} for name, dims in
                            (("cp", "2"), ("cp", "2"), ("tucker", "3")))  # fmt: skip
    assert varying_factors([cp, cp_again, tucker]) == ["method.name"]
    assert varying_factors([cp, {**cp_again, "method.dims": "4"}, tucker]) == ["method.dims", "method.name"]


def test_trials_share_all_but_what_follows_from_the_factor():
    names = [
        "method.name",
        "start.how",
        "start.weights",
        "teacher.name",
        "train.attention_weight",
        "train.lr",
        "train.recipe",
    ]
    searched = frozenset({"train.recipe"})
    assert shared_factors("train.attention_weight", names, searched) == [
        "method.name", "start.how", "start.weights", "train.lr", "train.recipe",
    ]  # fmt: skip
    assert "start.weights" not in shared_factors("start.how", names, searched)
    assert shared_factors("train.recipe", names, searched) == [
        "method.name",
        "start.how",
        "start.weights",
        "teacher.name",
    ]
    assert shared_factors("method.name", names, searched) == names[1:]
