"""The plan of a network: what is counted, what is kept and why, and that nothing uncountable passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lowrank.compression.counting_conventions import StudyExtras
from lowrank.compression.inspection.counting_rules import register_counting_rule
from lowrank.compression.merging import merge
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan, trace_plan
from lowrank.errors import InputError, UncountableError
from lowrank.layers.attention import project_attention
from lowrank.layers.registry import METHODS, make_method
from lowrank.networks.registry import NetworkSettings, default_images, make_network

torch.set_num_threads(1)  # tiny layers

DENSE = make_method({"name": "dense"})


def small(**layers: nn.Module) -> nn.Sequential:
    """A network that starts with a 3 -> 8 convolution named `first`."""
    network = nn.Sequential()
    network.add_module("first", nn.Conv2d(3, 8, 3, padding=1))
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def test_counts_equal_the_network_itself() -> None:
    network = small(norm=nn.BatchNorm2d(8), relu=nn.ReLU(), second=nn.Conv2d(8, 6, 3, stride=2, bias=False))
    plan = trace_plan(network, (3, 9, 9))
    assert plan.params(DENSE) == sum(parameter.numel() for parameter in network.parameters())
    assert plan.mult_adds(DENSE) == 9 * 3 * 8 * 81 + 9 * 8 * 6 * 16
    assert [(site.shape.in_area, site.shape.out_area) for site in plan.sites] == [(81, 81), (81, 16)]


def test_linear_maps_count_every_position() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(5 * 3 * 6, 2))
    plan = trace_plan(network, (3, 6, 4))
    assert plan.mult_adds(DENSE) == 4 * 5 * 18 + 90 * 2
    assert [site.keep_reason for site in plan.sites] == ["a linear map", "a linear map"]


def test_a_layer_that_runs_twice_is_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(self.stem(x)))

    plan = trace_plan(Twice(), (3, 4, 4))
    assert plan.mult_adds(DENSE) == 16 * (3 * 8 + 2 * 8 * 8)
    assert plan.params(DENSE) == 3 * 8 + 8 + 8 * 8


def test_reasons_for_what_is_kept() -> None:
    network = small(
        grouped=nn.Conv2d(8, 8, 3, groups=4),
        mirrored=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        exception=nn.Conv2d(8, 8, 1),
        free=nn.Conv2d(8, 8, 1),
        flat=nn.Flatten(),
        head=nn.Linear(8 * 49, 5),
    )
    plan = trace_plan(network, (3, 9, 9), keep=("exc*",))
    assert {site.name: site.keep_reason for site in plan.sites} == {
        "first": "the stem",
        "grouped": "already grouped (4 groups)",
        "mirrored": "padding mode 'reflect'",
        "exception": "kept by name (exc*)",
        "free": "",
        "head": "a linear map",
    }
    assert [site.name for site in plan.substituted] == ["free"]


def test_layers_of_any_kind_are_counted_by_what_they_run() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain.sum()

    plan = trace_plan(small(odd=nn.Softshrink(), prelu=nn.PReLU(), gain=Scale()), (3, 9, 9))
    assert plan.other_params == 1 + 2
    assert plan.other_mult_adds == 0


def test_maps_that_no_method_replaces_are_counted_and_named() -> None:
    network = small(up=nn.ConvTranspose2d(8, 4, 2, stride=2), flat=nn.Flatten(2), row=nn.Conv1d(4, 6, 3, padding=1))
    plan = trace_plan(network, (3, 9, 9))
    assert plan.others == (
        ("up", "a ConvTranspose2d, which no method replaces"), ("row", "a Conv1d, which no method replaces"),
    )  # fmt: skip
    assert plan.other_params == 8 * 4 * 4 + 4 + 4 * 6 * 3 + 6
    assert plan.other_mult_adds == 8 * 4 * 4 * 81 + 4 * 6 * 3 * 18 * 18
    assert plan.kept == (("first", "the stem"), *plan.others)


def test_products_that_torch_has_no_formula_for_are_counted() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv2d(3, 8, 1, bias=False), nn.LSTM(8, 5, batch_first=True)
            self.bilinear, self.vector = nn.Bilinear(5, 4, 6, bias=False), nn.Parameter(torch.ones(16))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2)
            tokens = self.lstm(x.transpose(1, 2))[0][:, -1]
            return self.bilinear(tokens, (x[0, :4] @ self.vector)[None])

    plan = trace_plan(Products(), (3, 4, 4))
    assert plan.other_mult_adds == 16 * (4 * 5 * 8 + 4 * 5 * 5) + 4 * 16 + 2 * 5 * 4 * 6
    assert plan.other_params == 4 * 5 * (8 + 5 + 2) + 5 * 4 * 6 + 16


def test_a_rule_of_the_user_counts_an_operation_or_a_module() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x).real

    network = small(spectrum=Spectrum(), last=nn.Conv2d(8, 8, 1))
    message = "the network runs aten._fft_c2c, which has no counting rule; give one by lowrank.register_counting_rule"
    with pytest.raises(UncountableError, match=message):
        trace_plan(network, (3, 9, 9))
    register_counting_rule(Spectrum, lambda module, inputs, output: 7 * output.numel())
    assert trace_plan(network, (3, 9, 9)).other_mult_adds == 7 * 8 * 81
    with pytest.raises(InputError, match="a class of modules or an operation"):
        register_counting_rule("fft", lambda: 0)


def test_layers_that_do_not_run_in_evaluation_are_counted_and_kept() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.second_head, self.read = nn.Conv2d(8, 5, 1), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.body(self.stem(x))
            y = functional.linear(x.mean((2, 3)), self.read.weight)
            return (y, self.second_head(x)) if self.training else y

    plan = trace_plan(Auxiliary(), (3, 4, 4), linear=True)
    unused = "it does not run by itself in evaluation"
    assert plan.kept == (("stem", "the stem"), ("second_head", unused), ("read", unused))
    assert plan.params(DENSE) == sum(parameter.numel() for parameter in Auxiliary().parameters())
    assert plan.mult_adds(DENSE) == 16 * (3 * 8 + 8 * 8) + 8 * 8


def test_an_empty_sequential_is_an_identity() -> None:
    plan = trace_plan(small(shortcut=nn.Sequential()), (3, 9, 9))
    assert plan.params(DENSE) == 3 * 8 * 9 + 8


def test_images_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"the network cannot take images of \(5, 9, 9\)"):
        trace_plan(small(), (5, 9, 9))


def test_tracing_leaves_the_network_as_it_was() -> None:
    network = small(norm=nn.BatchNorm2d(8)).train()
    before = network.norm.running_mean.clone()
    trace_plan(network, (3, 9, 9))
    assert network.training
    assert torch.equal(network.norm.running_mean, before)
    assert not network.first._forward_hooks


def test_linear_maps_are_substituted_when_asked() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(4, 5), nn.Flatten(), nn.Linear(8 * 4 * 5, 6), nn.Linear(6, 2))
    plan = trace_plan(network, (3, 4, 4), keep=("4",), linear=True)
    assert {site.name: site.keep_reason for site in plan.sites if site.linear} == {
        "1": "",
        "3": "",
        "4": "kept by name (4)",
    }
    assert plan.mult_adds(DENSE) == 3 * 8 * 16 + 4 * 5 * 8 * 4 + 160 * 6 + 12
    half = make_method({"name": "bottleneck", "rank_scale": 0.5})
    assert plan.params(half) == plan.fixed_params + 2 * (4 + 5) + 5 + 80 * (160 + 6) + 6


def test_a_network_may_ask_for_its_linear_maps_itself() -> None:
    plan = network_plan(NetworkSettings(name="mobilenet_v2"), (3, 32, 32), 10)
    assert [site.name for site in plan.sites if site.linear and not site.keep_reason] == ["classifier"]
    plan = network_plan(NetworkSettings(name="mlp", linear=True), (3, 8, 8), 10)
    assert [site.keep_reason for site in plan.sites] == ["", "", "kept by name (classifier)"]


def test_products_outside_of_layers_are_counted() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2)  # (1, 8, 16)
            scores = tokens.transpose(1, 2) @ tokens
            return functional.conv2d(scores[:, None], torch.ones(2, 1, 3, 3), padding=1)

    plan = trace_plan(Attending(), (3, 4, 4))
    assert plan.other_mult_adds == 16 * 16 * 8 + 2 * 9 * 256
    assert plan.mult_adds(DENSE) == 3 * 8 * 16 + plan.other_mult_adds


def test_attention_is_counted_as_a_whole() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attention = nn.Conv2d(3, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    plan = trace_plan(Attending(), (3, 4, 4), linear=True)
    assert plan.attention == ("attention",)
    assert [site.name for site in plan.sites] == ["conv"]
    assert plan.params(DENSE) == 3 * 8 + 8 + 4 * (8 * 8 + 8)
    assert plan.other_mult_adds == 4 * 8 * 8 * 16 + 2 * 8 * 16 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_projected_attention_costs_the_same_and_has_sites() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    network = Attending()
    whole = trace_plan(network, (3, 4, 4), linear=True)
    assert project_attention(network) == 1
    plan = trace_plan(network, (3, 4, 4), linear=True)
    assert plan.attention == ()
    assert [site.name for site in plan.substituted] == [
        f"attention.{name}_proj" for name in ("q", "k", "v", "out")
    ]  # fmt: skip
    assert plan.params(DENSE) == whole.params(DENSE)
    assert plan.mult_adds(DENSE) == whole.mult_adds(DENSE)


def test_the_study_counts_more() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu6 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6()
            self.pool, self.norm, self.head = nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Linear(8, 5)
            self.mean = nn.AvgPool2d((2, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu6(self.norm(functional.relu(self.conv(x)))).relu_()
            x = functional.max_pool2d(self.mean(self.pool(x)), (1, 2))
            return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    plan = trace_plan(Net(), (3, 8, 8))
    standard = 27 * 8 * 64 + 8 * 5
    assert plan.mult_adds(DENSE) == standard
    assert plan.extras == StudyExtras(relu_inputs=2 * 8 * 64, pooling=4 * 8 * 16 + 2 * 8 * 8, linear_biases=5)
    assert plan.with_convention("study").mult_adds(DENSE) == standard + plan.extras.total
    assert plan.with_convention("study").with_convention("standard") == plan


@pytest.mark.parametrize("name", ["convnext_tiny", "regnet_y_400mf", "swin_t", "vit_b_32", "densenet121"])
def test_torchvisions_own_layers_are_counted(name: str) -> None:
    """Published parameters; what runs is what torch's counter sees, attention's fused forms aside."""
    published = {
        "convnext_tiny": 28_589_128, "regnet_y_400mf": 4_344_144, "swin_t": 28_288_354, "vit_b_32": 88_224_232,
        "densenet121": 7_978_856,
    }  # fmt: skip
    plan = network_plan(NetworkSettings(name=f"torchvision:{name}"), (3, 224, 224), 1000)
    assert plan.params(DENSE) == published[name]
    giga = {"convnext_tiny": 4.46, "regnet_y_400mf": 0.40, "swin_t": 4.49, "vit_b_32": 4.41, "densenet121": 2.83}
    assert plan.mult_adds(DENSE) / 1e9 == pytest.approx(giga[name], abs=0.006)


COUNTED_AS_SEPARABLE = ("separable", "tensor_train", "tucker", "cp", "hashed")


MERGED = [("resnet9", name) for name in METHODS]
MERGED += [(network, "separable") for network in ("wrn_16_4", "mobilenet_v2", "vgg16", "wrn_50_2", "mlp")]
MERGED += [("resnet18", "separable"), ("vit", "tucker"), ("vit", "svd")]
MERGED += [("darts", "tensor_train"), ("mlp", "tucker"), ("mobilenet_v2", "cp"), ("wrn_50_2", "shuffle")]


@pytest.mark.parametrize(("network", "name"), MERGED)
def test_the_standard_convention_agrees_with_torchs_counter_on_merged_networks(network: str, name: str) -> None:
    image, method = (3, 32, 32), make_method({"name": name})
    settings = NetworkSettings(name=network, width=0.125, linear=True)
    plan = network_plan(settings, image, 8)
    for combined in (True, False):
        merged = merge(build_student(settings, plan, method, image, 8, seed=0), combined=combined).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            merged(torch.zeros(1, *image, device="meta"))
        assert trace_plan(merged, image).mult_adds(DENSE) * 2 == counter.get_total_flops()
        if combined:
            assert plan.mult_adds(DENSE) * 2 == counter.get_total_flops()
        elif name in COUNTED_AS_SEPARABLE:
            assert plan.mult_adds(method) * 2 == counter.get_total_flops()


def test_counting_takes_no_arithmetic_on_images() -> None:
    """One trace a network; every further configuration is arithmetic on its distinct shapes."""
    plan = network_plan(NetworkSettings(name="darts"), (3, 32, 32), 10)
    assert network_plan(NetworkSettings(name="darts"), (3, 32, 32), 10) is plan
    assert len(plan.shapes) < 20


@pytest.mark.parametrize("name", ["resnet9", "wrn_10_1", "darts", "mobilenet_v2", "vgg16", "mlp", "resnet18", "vit"])
def test_a_plan_is_the_same_with_weights_on_the_meta_device_or_not(name: str) -> None:
    settings = NetworkSettings(name=name, width=0.25)
    image, classes = default_images(name)
    network = make_network(settings, image, classes)
    assert trace_plan(network, image, name=name) == network_plan(settings, image, classes)


def test_weights_on_the_meta_device_may_meet_activations_in_any_operation() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.norm = nn.LayerNorm([8, 4, 4])
            self.scale = nn.Conv2d(8, 8, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.norm(self.conv(images))
            return (
                torch.cat([features, features * self.scale.weight.sum(1).view(1, 8, 1, 1)], 1)
                + self.scale(features)[0, 0, 0, 0]
            )

    with torch.device("meta"):
        network = Scaled()
    assert trace_plan(network, (3, 8, 8)) == trace_plan(Scaled(), (3, 8, 8))


def test_an_in_place_operation_on_a_weight_is_counted_on_the_meta_device() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.register_buffer("total", torch.zeros(8, 6, 6))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.total.add_(self.conv(images)[0])

    with torch.device("meta"):
        network = InPlace()
    assert trace_plan(network, (3, 8, 8)) == trace_plan(InPlace(), (3, 8, 8))


def test_an_image_of_other_channels_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(InputError, match=r"the network cannot take images of \(1, 8, 8\): Invalid channel dimensions"):
        trace_plan(network, (1, 8, 8))
