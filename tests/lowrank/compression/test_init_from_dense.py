"""A whole student from a trained network: nearest weights, everything else copied, and errors before any change."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.bayesian.variational_network import make_variational
from lowrank.compression.init_from_dense import InitReport, LayerInit, init_from_network
from lowrank.compression.merging import dense_weight, merge
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InputError
from lowrank.layers import Bayesian, ConvShape, SeparableConv2d, StructuredMap, variational_layers
from lowrank.layers.bayesian.priors import INITIAL_LOG_VARIANCE
from lowrank.layers.linear import build_linear
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings, make_network

torch.set_num_threads(1)
IMAGE = (3, 16, 16)
SMALL = NetworkSettings(width=0.125)


def trained(network: nn.Module, seed: int = 5) -> nn.Module:
    """Away from every start: weights, norms' statistics and biases."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
            else:
                tensor.add_(7)
    return network


def dense(settings: NetworkSettings = SMALL, image: tuple[int, int, int] = IMAGE) -> nn.Module:
    torch.manual_seed(1)
    return trained(make_network(settings, image, 10)).eval()


def student(
    name: str, settings: NetworkSettings = SMALL, image: tuple[int, int, int] = IMAGE, **fields: object
) -> nn.Module:
    method, plan = make_method({"name": name, **fields}), network_plan(settings, image, 10)
    return build_student(settings, plan, method, image, 10, 0).eval()


def images() -> Tensor:
    return torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(2))


FULL = [
    ("separable", {}), ("tensor_train", {"dims": 2, "rank_scale": 1.0}), ("tucker", {"dims": 3, "rank_scale": 1.0}),
    ("cp", {"dims": 2, "rank_scale": 1.0}), ("bottleneck", {"rank_scale": 1.0}), ("hashed", {"bank_scale": 1.0}),
    ("hashed_full", {"bank_scale": 1.0}), ("monarch", {"rank_scale": 1.0}), ("dense", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), FULL, ids=[name for name, _ in FULL])
def test_a_full_size_mlp_gives_what_the_trained_one_gives(name, fields):
    settings = NetworkSettings(name="mlp", width=0.0625)
    teacher, found = dense(settings), student(name, settings, **fields)
    report = init_from_network(found, teacher)
    torch.testing.assert_close(found(images()), teacher(images()), rtol=1e-3, atol=1e-3)
    assert [layer.name for layer in report.layers] == ([] if name == "dense" else ["hidden.0", "hidden.3"])
    assert report.largest_error < 1e-5


@pytest.mark.parametrize("name", ["dense", "hashed_full"])
def test_a_full_size_kernel_keeps_resnet9_exact(name):
    teacher, found = dense(), student(name, **({} if name == "dense" else {"bank_scale": 1.0}))
    assert not torch.allclose(found(images()), teacher(images()), atol=0.1)
    init_from_network(found, teacher)
    torch.testing.assert_close(found(images()), teacher(images()), rtol=1e-3, atol=1e-4)


def with_separable_kernels(teacher: nn.Module) -> nn.Module:
    """The same with every kernel but the stem's cut to rank one a channel: what a separable form can be."""
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            part = make_method({"name": "separable"}).build(
                ConvShape(module.in_channels, module.out_channels, (3, 3), padding=(1, 1))
            )
            part.init_from_dense(module.weight)
            module.weight.data.copy_(part.dense_weight())
    return teacher


@pytest.mark.parametrize(("name", "fields"), FULL[:6], ids=[name for name, _ in FULL[:6]])
def test_full_size_is_as_near_as_separable_kernels_allow(name, fields):
    teacher = dense()
    errors = {layer.name: layer.error for layer in init_from_network(student("separable"), teacher).layers}
    report = init_from_network(student(name, **fields), teacher)
    assert len(report.layers) == 7
    for layer in report.layers:
        assert 0.1 < layer.error < 1
        assert layer.error == pytest.approx(errors[layer.name], rel=1e-3)
    exact, found = with_separable_kernels(teacher), student(name, **fields)
    assert init_from_network(found, exact).largest_error < 1e-5
    torch.testing.assert_close(found(images()), exact(images()), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_reports_each_layers_error_and_copies_the_rest(name):
    settings, image = SMALL, IMAGE
    if name == "tied_bottleneck":  # the inputs of each of its layers divide the outputs: here 64 pixels, 128 and 128
        settings, image = NetworkSettings(name="mlp", hidden=(128, 128)), (1, 8, 8)
    teacher, found = dense(settings, image), student(name, settings, image)
    report = init_from_network(found, teacher)
    for layer in report.layers:
        module, wanted = found.get_submodule(layer.name), teacher.get_submodule(layer.name).weight
        left = (dense_weight(module) - wanted).norm() / wanted.norm()
        assert layer.error == pytest.approx(left.item(), rel=1e-3, abs=1e-5)
        assert layer.error < 1
    state, wanted = found.state_dict(), teacher.state_dict()
    assert set(report.copied) == set(state) & set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in report.copied)
    assert report.largest_error == max([layer.error for layer in report.layers], default=0.0)


def test_the_report_says_what_was_done():
    report = InitReport((LayerInit("a.b", 0.25), LayerInit("c", 0.5)), ("norm.weight",))
    assert str(report).splitlines() == [
        "started 2 layers from trained weights, copied 1 tensor", "a.b: relative error 0.25", "c: relative error 0.5",
    ]  # fmt: skip
    assert report.largest_error == 0.5
    assert InitReport((), ()).largest_error == 0.0


class Pair(nn.Module):
    """A convolution and a linear map, plain or structured, with biases or without."""

    def __init__(
        self, method: str = "dense", bias: bool = True, stride: int = 1, out: int = 16, own: dict | None = None
    ):
        super().__init__()
        made = make_method({"name": method, **(own or {})})
        self.conv = made.build(ConvShape(8, out, (3, 3), (stride, stride), (1, 1), bias=bias))
        self.linear = build_linear(made, ConvShape(out, 4, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", ["hashed_full", "hashed_both"])
def test_a_bias_is_taken_over_whole(name, bias):
    """Also where the structure has biases of its own, which may be two."""
    teacher, found = trained(Pair(bias=bias)), trained(Pair(name, bias=bias, own={"bias": True}), seed=9)
    init_from_network(found, teacher)
    expected = teacher.conv.bias if bias else torch.zeros(16)
    torch.testing.assert_close(found.conv(torch.zeros(1, 8, 4, 4))[0, :, 1, 1], expected)
    expected = teacher.linear.bias if bias else torch.zeros(4)
    torch.testing.assert_close(found.linear(torch.zeros(1, 16))[0], expected)


def test_a_structured_network_can_be_the_trained_one():
    teacher = trained(Pair("bottleneck", own={"rank_scale": 0.25}))
    found = Pair("tensor_train", own={"dims": 2, "rank_scale": 1.0})
    report = init_from_network(found, teacher)
    assert report.largest_error < 1e-4
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(found(x), teacher(x), rtol=1e-3, atol=1e-4)


def test_a_layer_alone_can_be_the_whole_network():
    teacher, found = nn.Conv2d(8, 16, 1), make_method({"name": "bottleneck", "rank_scale": 1.0})
    layer = found.build(ConvShape(8, 16, bias=True))
    report = init_from_network(layer, teacher)
    assert [each.name for each in report.layers] == [""]
    assert report.copied == ()
    torch.testing.assert_close(merge(layer).bias, teacher.bias)


def test_a_layer_under_two_names_starts_once():
    method = make_method({"name": "bottleneck", "rank_scale": 1.0})
    shared, plain = method.build(ConvShape(8, 8)), nn.Conv2d(8, 8, 1, bias=False)
    calls: list[int] = []
    shared.fit_factors = lambda dense, fit=shared.fit_factors: calls.append(1) or fit(dense)
    found = nn.Sequential(shared, nn.ReLU(), shared)
    report = init_from_network(found, nn.Sequential(plain, nn.ReLU(), plain))
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert calls == [1]
    torch.testing.assert_close(dense_weight(shared), plain.weight, rtol=1e-4, atol=1e-5)


def test_training_mode_and_gradients_stay_as_they_were():
    found = Pair("tensor_train")
    init_from_network(found, Pair())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in found.parameters())
    assert found.training


def no_linear() -> nn.Module:
    teacher = Pair()
    del teacher.linear
    return teacher


def other(name: str, module: nn.Module) -> nn.Module:
    teacher = Pair()
    setattr(teacher, name, module)
    return teacher


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (no_linear(), "the trained network has no module `linear`, which the student replaced"),
        (Pair(out=32), "`conv`: the student's weight is 16 x 8 x 3 x 3, the trained network's is 32 x 8 x 3 x 3"),
        (Pair(stride=2), "`conv`: the student's layer has stride (1, 1), the trained network's has stride (2, 2)"),
        (
            other("linear", nn.BatchNorm1d(4)),
            "`linear` of the trained network: the layer must be a convolution, a linear map",
        ),
        (
            other("linear", nn.Linear(16, 5)),
            "`linear`: the student's weight is 4 x 16, the trained network's is 5 x 16",
        ),
    ],
)
def test_a_module_that_does_not_fit_is_named_and_nothing_is_changed(teacher, message):
    found = Pair("bottleneck")
    before = copy.deepcopy(found.state_dict())
    with pytest.raises(InputError, match=re.escape(message)):
        init_from_network(found, teacher)
    assert all(torch.equal(before[name], value) for name, value in found.state_dict().items())


def test_a_bias_that_the_student_lacks_is_an_error():
    with pytest.raises(InputError, match="`conv`: the trained network has a bias there, the student has none"):
        init_from_network(Pair("bottleneck", bias=False), Pair())


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.ReLU(), "the trained network has no `1.weight`, which the student keeps as it is"),
        (nn.BatchNorm2d(5), "`1.weight`: the student's is 8, the trained network's is 5"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_changed(norm, message):
    layer = make_method({"name": "bottleneck"}).build(ConvShape(8, 8, (3, 3)))
    found = nn.Sequential(layer, nn.BatchNorm2d(8))
    before = copy.deepcopy(found.state_dict())
    with pytest.raises(InputError, match=re.escape(message)):
        init_from_network(found, nn.Sequential(nn.Conv2d(8, 8, 3, padding=0, bias=False), norm))
    assert all(torch.equal(before[name], value) for name, value in found.state_dict().items())


def test_only_structured_layers_of_the_outermost_kind_are_named():
    report = init_from_network(Pair("hashed_both"), Pair())
    assert [layer.name for layer in report.layers] == ["conv", "linear"]
    assert not any(isinstance(part, SeparableConv2d | StructuredMap) for part in merge(Pair("hashed_both")).modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dilation": 2, "padding": 2},
            "has padding (1, 1), dilation (1, 1), the trained network's has padding (2, 2)",
        ),
        ({"stride": 2}, "`0`: the student's layer has stride (1, 1), the trained network's has stride (2, 2)"),
        ({"padding_mode": "reflect"}, "has padding mode zeros, the trained network's has padding mode reflect"),
    ],
)
def test_convolutions_that_are_copied_must_move_alike(options: dict[str, object], message: str) -> None:
    student, teacher = (nn.Sequential(nn.Conv2d(3, 4, 3, **{"padding": 1, **more})) for more in ({}, options))
    before = student[0].weight.clone()
    with pytest.raises(InputError, match=re.escape(message)):
        init_from_network(student, teacher)
    assert torch.equal(student[0].weight, before)


def test_dilation_and_groups_of_a_structured_layer_must_be_those_of_the_trained_one() -> None:
    shape = ConvShape(4, 4, (3, 3), padding="same")
    student = nn.Sequential(make_method({"name": "separable"}).build(shape))
    teacher = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", dilation=2, bias=False))
    with pytest.raises(InputError, match=re.escape("has dilation (1, 1), the trained network's has dilation (2, 2)")):
        init_from_network(student, teacher)


@pytest.mark.parametrize("prior", ["normal_jeffreys", "horseshoe"])
@pytest.mark.parametrize("settings", [NetworkSettings(name="mlp", hidden=(12, 8)), SMALL], ids=["mlp", "resnet9"])
def test_posteriors_begin_at_the_trained_network(settings: NetworkSettings, prior: str) -> None:
    source, student = dense(settings), make_network(settings, IMAGE, 10).eval()
    make_variational(student, Bayesian.model_validate({"prior": prior}))
    layers = dict(variational_layers(student))
    init_from_network(student, source)
    torch.testing.assert_close(student(images()), source(images()), rtol=1e-5, atol=1e-5)
    assert layers
    assert all(bool((layer.weight_log_variance == INITIAL_LOG_VARIANCE).all()) for layer in layers.values())


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_variational_convolution_takes_over_a_bias(has_bias: bool) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=has_bias))
    student = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))
    make_variational(student, Bayesian(prior="horseshoe"))
    init_from_network(student, source)
    torch.testing.assert_close(student.eval()(images()), source(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (nn.Conv2d(3, 5, 3), "`0`: the student's weight is 4 x 3 x 3 x 3, the trained network's is 5 x 3 x 3 x 3"),
        (nn.Conv2d(3, 4, 3, stride=2), "has stride (1, 1), the trained network's has stride (2, 2)"),
        (nn.ReLU(), "`0` of the trained network: the layer must be a convolution"),
    ],
)  # fmt: skip
def test_a_posterior_of_another_shape_is_refused_unchanged(source: nn.Module, message: str) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 3))
    make_variational(student, Bayesian())
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(InputError, match=re.escape(message)):
        init_from_network(student, nn.Sequential(source))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
