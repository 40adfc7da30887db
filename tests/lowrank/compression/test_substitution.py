"""Substitution in the project's networks and in torchvision's: what changes, what stays, seeds, and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank.compression.merging import merge
from lowrank.compression.substitution import build_student, factor_parameters, substitute
from lowrank.compression.trace import network_plan, trace_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import SeparableConv2d, StructuredLinear, StructuredMap
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings, make_network

torch.set_num_threads(1)  # tiny layers

IMAGE = (3, 8, 8)
SMALL = NetworkSettings(name="resnet9", width=0.125)
TRAIN = make_method({"name": "tensor_train", "dims": 3, "rank_scale": 0.5})


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_students_have_the_size_of_the_plan_and_train(name: str) -> None:
    method = make_method({"name": name})
    plan = network_plan(SMALL, IMAGE, 10)
    student = build_student(SMALL, plan, method, IMAGE, 10, seed=0)
    assert count(student) == plan.params(method)
    student(torch.randn(4, *IMAGE)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_students_are_reproducible_from_their_seed_alone() -> None:
    plan = network_plan(SMALL, IMAGE, 10)

    def weights(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever the global generator has done before
        student = build_student(SMALL, plan, TRAIN, IMAGE, 10, seed)
        return torch.cat([parameter.flatten() for parameter in student.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_building_a_student_leaves_the_global_generator_alone() -> None:
    plan = network_plan(SMALL, IMAGE, 10)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_student(SMALL, plan, TRAIN, IMAGE, 10, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_report_names_what_changed_and_what_was_left() -> None:
    network = make_network(SMALL, IMAGE, 10)
    report = substitute(network, TRAIN, IMAGE)
    assert len(report.changed) == 7
    assert dict(report.unchanged) == {"stem.0": "the stem", "classifier": "a linear map"}
    assert report.params == count(network)
    lines = str(report).splitlines()
    assert lines[0] == f"substituted 7 layers, {report.params:,} parameters in all"
    assert lines[1] == f"before: {report.dense_params:,} parameters"
    assert lines[2].startswith("changed stage1.0.0: 3 x 3, 8 -> 16 channels, 1,152 -> ")
    assert lines[-1] == "unchanged classifier: a linear map"
    assert isinstance(network.get_submodule(report.changed[0]), SeparableConv2d)


def test_torchvision_networks_are_substituted() -> None:
    from lowrank.utils.torchvision_compat import torchvision

    network = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    report = substitute(network, TRAIN, (3, 32, 32))
    assert len(report.changed) == 19  # 16 of 3 x 3 and 3 shortcuts of 1 x 1
    assert dict(report.unchanged) == {"conv1": "the stem", "fc": "a linear map"}
    assert isinstance(network.layer2[0].downsample[0], StructuredMap)
    assert report.params == count(network)
    assert tuple(network(torch.zeros(1, 3, 32, 32)).shape) == (1, 10)


def test_grouped_convolutions_are_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))
    report = substitute(network, make_method({"name": "separable"}), IMAGE)
    assert report.changed == ("2",)
    assert dict(report.unchanged)["1"] == "already grouped (8 groups)"


def test_linear_maps_are_substituted_when_asked() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 24), nn.ReLU(), nn.Linear(24, 10))
    images = torch.randn(2, *IMAGE)
    report = substitute(network, TRAIN, IMAGE, keep=("4",), linear=True)
    assert report.changed == ("2",)
    assert report.shapes[0].startswith("linear, 288 -> 24 channels, 6,936 -> ")
    assert dict(report.unchanged) == {"0": "the stem", "4": "kept by name (4)"}
    assert report.params == count(network)
    assert isinstance(network[2], StructuredLinear)
    assert len(factor_parameters(network)) == 3
    expected = network(images)
    torch.testing.assert_close(merge(network)(images), expected, rtol=1e-4, atol=1e-5)
    assert type(network[2]) is nn.Linear


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_32"])
def test_linear_maps_of_torchvision(name: str) -> None:
    from lowrank.utils.torchvision_compat import torchvision

    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, num_classes=10)
    plan = trace_plan(network, (3, 224, 224), linear=True)
    assert [site.name for site in plan.substituted if site.linear][-1] in ("fc", "classifier.2", "heads.head")
    assert all(
        site.keep_reason == "the stem" or "grouped" in site.keep_reason for site in plan.sites if site.keep_reason
    )


def test_attention_is_left_with_its_reason() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attention = nn.Conv2d(3, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0])

    network = Attending()
    report = substitute(network, TRAIN, IMAGE, linear=True)
    assert report.changed == ("head",)
    assert dict(report.unchanged)["attention"] == "attention, which uses its linear maps' weights by itself"
    assert report.params == count(network)
    assert tuple(network(torch.zeros(2, *IMAGE)).shape) == (2, 64, 8)


def test_a_layer_under_two_names_stays_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.other = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.one(self.stem(x)))

    network = Twice()
    report = substitute(network, TRAIN, IMAGE)
    assert network.one is network.other
    assert isinstance(network.one, StructuredMap)
    assert report.params == count(network)


def test_students_of_darts_leave_the_auxiliary_head_alone() -> None:
    settings = NetworkSettings(name="darts", width=0.12, auxiliary=True)
    plan = network_plan(settings, (3, 32, 32), 10)
    student = build_student(settings, plan, make_method({"name": "separable"}), (3, 32, 32), 10, seed=0)
    auxiliary = count(student.auxiliary)
    assert count(student) == plan.params(make_method({"name": "separable"})) + auxiliary
    assert type(student.auxiliary[2]) is nn.Conv2d


def test_dtype_mode_and_bias_of_the_old_layer_are_kept() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, bias=True)).double().eval()
    substitute(network, TRAIN, IMAGE)
    assert network[1].pointwise.bias is not None
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert not network[1].training


def test_what_cannot_stand_is_named_before_anything_changes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    with pytest.raises(
        InfeasibleError, match=r"bottleneck: rank trunc\(0\.1 \* 8\) is 0; `rank_scale` must be at least"
    ):
        substitute(network, make_method({"name": "bottleneck", "rank_scale": 0.1}), IMAGE)
    assert type(network[1]) is nn.Conv2d


def test_factor_parameters_are_those_of_the_structured_maps() -> None:
    network = make_network(SMALL, IMAGE, 10)
    assert factor_parameters(network) == []
    substitute(network, TRAIN, IMAGE)
    factors = factor_parameters(network)
    assert len(factors) == 7 * 3
    plan = network_plan(SMALL, IMAGE, 10)
    pointwise = sum(TRAIN.map_params(site.shape.in_channels, site.shape.out_channels) for site in plan.substituted)
    assert sum(factor.numel() for factor in factors) == pointwise


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_merged_networks_give_the_same_with_plain_layers(name: str, combined: bool) -> None:
    plan = network_plan(SMALL, IMAGE, 10)
    student = build_student(SMALL, plan, make_method({"name": name}), IMAGE, 10, seed=0).eval().double()
    images = torch.randn(2, *IMAGE, dtype=torch.float64)
    expected = student(images)
    merged = merge(student, combined=combined)
    torch.testing.assert_close(merged(images), expected, rtol=1e-8, atol=1e-10)
    assert not any(isinstance(module, StructuredMap | SeparableConv2d) for module in merged.modules())
    if combined:
        biases = sum(module.bias.numel() for module in merged.modules() if getattr(module, "bias", None) is not None)
        dense_biases = count(merged.stem[1]) // 2 + sum(site.shape.out_channels for site in plan.substituted)
        own = biases - dense_biases  # what a method brings with it stays
        assert count(merged) - own == plan.params(make_method({"name": "dense"}))


def test_a_single_layer_is_merged_to_what_is_returned() -> None:
    layer = make_method({"name": "tucker"}).build(network_plan(SMALL, IMAGE, 10).substituted[0].shape)
    assert type(merge(layer)) is nn.Conv2d
