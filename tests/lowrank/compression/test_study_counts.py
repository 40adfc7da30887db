"""Three details of the study's counts of mult-adds, which the standard convention does not have."""

from __future__ import annotations

import pytest
from torch import nn

from lowrank.compression import NetworkPlan, network_plan, trace_plan
from lowrank.layers import Dense, make_method
from lowrank.networks import NetworkSettings

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def mult_adds(plan: NetworkPlan, method: str) -> tuple[int, int]:
    """Under both conventions, without what the study counted besides layers."""
    method_settings = make_method({"name": method, **({"bank_scale": 0.1} if "hashed" in method else {})})
    study = plan.with_convention("study").mult_adds(method_settings) - plan.extras.total
    return plan.mult_adds(method_settings), study


def test_the_last_pooling_of_wrn_50_2_is_a_module_of_7_x_7():
    plan = network_plan(NetworkSettings(name="wrn_50_2"), IMAGENET, 1000)
    stem = 9 * 64 * 56 * 56
    assert plan.extras.pooling == stem + 7 * 7 * 2048 == 1_906_688
    assert plan.mult_adds(Dense()) == plan.with_convention("study").mult_adds(Dense()) - plan.extras.total


@pytest.mark.parametrize(("name", "pooling"), [("wrn_16_4", 0), ("mobilenet_v2", 0), ("resnet18", 9 * 64 * 8 * 8)])
def test_adaptive_poolings_of_other_networks_count_nothing(name: str, pooling: int):
    assert network_plan(NetworkSettings(name=name), CIFAR, 10).extras.pooling == pooling


def test_the_classifier_of_mobilenet_v2_was_a_convolution_whose_bias_is_no_mult_add():
    assert network_plan(NetworkSettings(name="mobilenet_v2"), IMAGENET, 1000).extras.linear_biases == 0
    assert network_plan(NetworkSettings(name="resnet18"), IMAGENET, 1000).extras.linear_biases == 1000


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "undilated"), [(1, 2, 2, 34), (1, 0, 2, 30), (2, 2, 2, 17), (1, 1, 1, 32)]
)
def test_a_dilated_hashed_full_is_charged_for_the_area_without_its_dilation(
    stride: int, padding: int, dilation: int, undilated: int
):

    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, stride, padding, dilation))
    plan = trace_plan(network, CIFAR)
    side = plan.substituted[0].shape.out_area ** 0.5
    stem = 3 * 4 * 32 * 32
    assert mult_adds(plan, "hashed_full") == (stem + 9 * 4 * 8 * side**2, stem + 9 * 4 * 8 * undilated**2)
    for method in ("dense", "separable", "hashed"):
        standard, study = mult_adds(plan, method)
        assert standard == study
