"""A trial's network is counted again from its record alone, or the record says what it lacks."""

from __future__ import annotations

import pytest

from analysis.sources.recount import NotOnRecordError, recount
from lowrank.compression.budget import Budget, solve
from lowrank.compression.trace import network_plan
from lowrank.errors import InputError
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from sweeps.records.header import HeaderData
from sweeps.records.model import TrialRecord
from tests.support.specifications import make_specification

CIFAR = HeaderData(image_shape=(3, 32, 32), classes=10)


def record(**changes) -> TrialRecord:
    sections = {
        "network": {"name": "resnet9", "width": 0.25}, "method": {"name": "tensor_train", "dims": 3, "rank_scale": 0.3},
        "data": {"name": "cifar10", "fingerprint": "f00d"}, **changes,
    }  # fmt: skip
    return TrialRecord(trial_id="abcd", specification=make_specification(**sections))


def test_counts_are_those_of_the_plan():
    plan = network_plan(NetworkSettings(name="resnet9", width=0.25), (3, 32, 32), 10)
    counts = recount(record(), CIFAR)
    for prefix, method in (
        ("", {"name": "tensor_train", "dims": 3, "rank_scale": 0.3}), ("dense_", {"name": "dense"}),
        ("separable_", {"name": "separable"}),
    ):  # fmt: skip
        assert counts[f"{prefix}params"] == plan.params(make_method(method))
        assert counts[f"{prefix}mult_adds"] == plan.mult_adds(make_method(method))


def test_what_a_budget_solved_is_counted_as_recorded():
    plan = network_plan(NetworkSettings(name="resnet9", width=0.25), (3, 32, 32), 10)
    method = solve(plan, make_method({"name": "bottleneck"}), Budget(params=60_000))
    assert recount(record(method=method.model_dump(mode="json")), CIFAR)["params"] == plan.params(method)


def test_shape_and_classes_of_a_published_set_need_not_be_on_record():
    assert recount(record(), HeaderData()) == recount(record(), CIFAR)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HeaderData(classes=10), "the shape of the images of folder:/x"),
        (HeaderData(image_shape=(3, 8, 8)), "the number of classes"),
    ],
)
def test_a_record_that_lacks_what_is_needed_says_what(data, message):
    with pytest.raises(NotOnRecordError, match=message):
        recount(record(data={"name": "folder:/x", "fingerprint": "f00d"}), data)


def test_a_trial_without_specification_says_so():
    with pytest.raises(NotOnRecordError, match="no specification on record"):
        recount(TrialRecord(trial_id="abcd"), CIFAR)


@pytest.mark.parametrize("changes", [{"method": {"name": "sparse"}}, {"network": {"name": "resnet10"}}])
def test_what_this_version_does_not_have_is_one_line(changes):
    with pytest.raises(InputError) as caught:
        recount(record(**changes), CIFAR)
    assert "\n" not in str(caught.value)
