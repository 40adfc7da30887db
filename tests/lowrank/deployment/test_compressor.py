"""A trained network made smaller: exact budgets, the least size named, the given network untouched."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compress import ALLOCATIONS as OFFERED_ALLOCATIONS, METHODS as OFFERED_METHODS
from lowrank.data import DataSettings, eval_batches, load_data
from lowrank.deployment.compressor import ALLOCATIONS, METHODS, Compressed, Compressor
from lowrank.errors import InfeasibleError, InputError
from lowrank.io import load_model
from tests.support import own_networks

WEIGHTS = Path(__file__).parents[2] / "data" / "digits_resnet9.safetensors"


def images_of(split: str) -> tuple[Tensor, Tensor]:
    batches = list(eval_batches(load_data(DataSettings()), split, device="cpu", batch_size=512))
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return load_model(WEIGHTS)


@pytest.fixture(scope="module")
def compressor(dense: nn.Module) -> Compressor:
    images, labels = images_of("train")
    return Compressor(dense, [(images[:512], labels[:512])], calibration=512, validation=images_of("val"))


def error(network: nn.Module) -> float:
    images, labels = images_of("test")
    with torch.no_grad():
        return 100 * float((network(images).argmax(1) != labels).double().mean())


@pytest.fixture(scope="module")
def halved(compressor: Compressor) -> Compressed:
    return compressor.compress(0.5, method="tucker2")


def test_half_of_the_parameters_cost_at_most_a_point_without_training(dense, halved) -> None:
    assert halved.params <= 0.5 * halved.dense_params
    assert error(halved.network) <= error(dense) + 1.0


def test_counts_are_those_of_the_network(dense, halved) -> None:
    assert halved.params == sum(value.numel() for value in halved.network.parameters())
    assert halved.dense_params == sum(value.numel() for value in dense.parameters())
    inside = sum(layer.dense_params - layer.params for layer in halved.layers)
    assert halved.dense_params - halved.params == inside
    assert halved.mult_adds < halved.dense_mult_adds


def test_the_given_network_is_unchanged(dense, halved) -> None:
    assert not any("Chain" in type(module).__name__ for module in dense.modules())
    torch.testing.assert_close(load_model(WEIGHTS).state_dict(), dense.state_dict(), rtol=0, atol=0)


def test_a_smaller_budget_gives_a_smaller_network_farther_away(compressor, halved) -> None:
    eighth = compressor.compress(0.125, method="tucker2")
    assert eighth.params <= 0.125 * eighth.dense_params
    assert eighth.divergence > halved.divergence


def test_both_limits_are_kept(compressor) -> None:
    small = compressor.compress({"params": 0.5, "mult_adds": 0.4}, method="tucker2", allocation="energy")
    assert small.params <= 0.5 * small.dense_params
    assert small.mult_adds <= 0.4 * small.dense_mult_adds


def test_layers_say_what_became_of_them(halved) -> None:
    by_name = {layer.name: layer for layer in halved.layers}
    assert by_name["classifier"].reason == "it gives the classes"
    assert by_name["classifier"].output_error is not None  # fitted again to what enters it
    factored = [layer for layer in halved.layers if layer.method == "tucker2"]
    assert factored
    assert all(layer.params < layer.dense_params and 0 < layer.output_error < 1 for layer in factored)


class Mixed(nn.Module):
    """A convolution to factorise beside modules and a lone parameter that nobody factorises."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32, 8, 8))
        self.conv, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.up, self.down = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.up((self.scale * self.norm(self.conv(x))).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_large_modules_that_are_never_replaced_are_reported_and_named_with_the_least_size() -> None:
    torch.manual_seed(0)
    compressor = Compressor(Mixed(), [torch.rand(24, 1, 8, 8)])
    small = compressor.compress(0.8, method="svd", allocation="energy")
    rows = {layer.name: (layer.kind, layer.params, layer.dense_params, layer.reason) for layer in small.layers}
    reason = "it is no convolution or linear map"
    assert rows["scale"] == ("parameter", 2048, 2048, reason)
    assert rows["up"] == ("ConvTranspose2d", 2064, 2064, reason)
    assert "norm" not in rows  # less than a hundredth of the parameters
    with pytest.raises(InfeasibleError, match=r"; the largest is `up` \(ConvTranspose2d, 2,064 parameters\): it is no"):
        compressor.compress(0.01, method="svd")


def test_a_budget_of_all_parameters_replaces_nothing_and_says_so(compressor) -> None:
    small = compressor.compress(1.0, method="svd", allocation="energy")
    assert small.params == small.dense_params
    assert {layer.reason for layer in small.layers} == {"the budget is met without factors", "it gives the classes"}


def test_a_budget_below_the_least_size_is_refused_with_that_size(compressor) -> None:
    with pytest.raises(
        InfeasibleError, match=r"least size is [\d,]+ of [\d,]+ parameters .* never replaced; the"
    ) as error:
        compressor.compress(0.001, method="svd")
    named = re.search(r"parameters \(([\d.]+)%\)", str(error.value))
    assert named is not None
    compressor.check_budget(float(named.group(1)) / 100, "svd")  # a share that was named can be reached


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("budget", [0.001, {"mult_adds": 0.001}, {"params": 0.9, "mult_adds": 0.001}])
def test_a_budget_below_rank_1_everywhere_is_refused_before_calibration(dense, method, budget) -> None:
    images, _ = images_of("train")
    lines: list[str] = []
    fresh = Compressor(dense, [images[:32]], calibration=32, progress=lines.append)
    with pytest.raises(InfeasibleError, match=r"least size is [\d,]+ of [\d,]+ parameters .* of [\d,]+ mult-adds"):
        fresh.compress(budget, method=method)
    assert lines == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, r"the budget on params must be a share in \(0, 1\], but got 0"),
        ({"budget": {}}, r"the budget must limit params, mult_adds or both, but got \{\}"),
        ({"budget": "half"}, r"the budget must be a share or shares of params and mult_adds, but got 'half'"),
        ({"budget": {"params": None}}, r"the budget on params must be a share in \(0, 1\], but got None"),
        ({"budget": float("nan")}, r"the budget on params must be a share in \(0, 1\], but got nan"),
        ({"budget": {"bytes": 0.5}}, r"unknown limit 'bytes'; choose from: mult_adds, params"),
        ({"budget": 0.5, "method": "tucker"}, r"unknown method 'tucker'; choose from: auto, cp_kernel"),
        ({"budget": 0.5, "allocation": "fair"}, r"unknown allocation 'fair'; choose from: auto, energy, sensitivity"),
    ],
)
def test_wrong_settings_are_one_line(compressor, options, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compressor.compress(**options)
    assert "\n" not in str(caught.value)


def test_kept_layers_stay_and_unknown_patterns_are_refused(dense) -> None:
    images, _ = images_of("train")
    small = lowrank.compress_network(
        dense, [images[:64]], 0.9, method="svd", allocation="energy", keep=["stage3.1.*"], calibration=64
    )
    reasons = {layer.name: layer.reason for layer in small.layers}
    assert reasons["stage3.1.first.0"] == "kept by name (stage3.1.*)"
    assert small.error_before is None, "there are no labels"
    with pytest.raises(InputError, match=r"no layer is called 'head'; choose from: stem\.0"):
        lowrank.compress_network(dense, [images[:64]], 0.9, keep=["head"])


class Scaled(nn.Conv2d):
    """A convolution that scales its weight: not a plain one."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class Awkward(nn.Module):
    """Layers that must stay as they are, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 32, 3, padding=1)
        self.scaled = Scaled(32, 32, 3, padding=1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3, padding=1))
        self.circular = nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular")
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.tied_one, self.tied_two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.tied_two.weight = self.tied_one.weight
        self.hooked, self.unused = nn.Linear(32, 32), nn.Linear(32, 32)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        self.wide, self.last = nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.circular(self.normed(self.scaled(self.plain(x).relu()).relu())))
        x = self.tied_two(self.tied_one(x.mean((2, 3))).relu()).relu()
        return self.last(self.wide(self.hooked(x)).relu())


def test_what_is_no_plain_layer_stays_with_the_reason() -> None:
    torch.manual_seed(0)
    network = Awkward().eval()
    images = torch.randn(64, 3, 8, 8)
    small = lowrank.compress_network(network, [images], 0.97, method="svd", allocation="energy", calibration=64)
    reasons = {layer.name: layer.reason for layer in small.layers}
    assert reasons["scaled"] == "Scaled has a forward of its own"
    assert reasons["normed"] == "its weight is computed from other parameters"
    assert reasons["circular"] == "its padding mode is 'circular'"
    assert reasons["depthwise"] == "it is depthwise"
    assert reasons["tied_one"] == reasons["tied_two"] == "its weight is shared with another layer"
    assert reasons["hooked"] == "hooks are attached to it"
    assert reasons["unused"] == "its weight is used without running it"
    assert {layer.name for layer in small.layers if layer.method == "svd"} <= {"plain", "wide"}


class TiedClassifier(nn.Module):
    """A classifier that shares its weight with another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle, self.classifier = nn.Conv2d(3, 32, 3), nn.Linear(32, 32), nn.Linear(32, 32)
        self.classifier.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.middle(self.wide(x).relu().mean((2, 3))).relu())


def test_a_classifier_that_shares_its_weight_is_not_fitted_again() -> None:
    torch.manual_seed(0)
    network = TiedClassifier().eval()
    images = torch.randn(64, 3, 6, 6)
    small = lowrank.compress_network(network, [images], 0.9, method="svd", allocation="energy", calibration=64)
    assert small.params <= 0.9 * small.dense_params
    assert small.network.classifier.weight is small.network.middle.weight
    assert {layer.name: layer.output_error for layer in small.layers}["classifier"] is None


def test_a_classifier_that_is_kept_by_name_is_not_fitted_again(dense) -> None:
    images, _ = images_of("train")
    small = lowrank.compress_network(
        dense, [images[:64]], 0.5, method="svd", allocation="energy", keep=["classifier"], calibration=64
    )
    torch.testing.assert_close(small.network.classifier.weight, dense.classifier.weight, rtol=0, atol=0)


def test_frozen_layers_stay_frozen(dense) -> None:
    frozen = load_model(WEIGHTS)
    frozen.stage3.requires_grad_(False)
    images, _ = images_of("train")
    small = lowrank.compress_network(frozen, [images[:64]], 0.5, method="svd", allocation="energy", calibration=64)
    states = {name: value.requires_grad for name, value in small.network.named_parameters()}
    assert not any(state for name, state in states.items() if name.startswith("stage3"))
    assert all(state for name, state in states.items() if name.startswith("stage1"))


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="runs no Conv2d or Linear layer"):
        lowrank.compress_network(
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).eval(), [torch.randn(8, 3, 2, 2)], calibration=8
        )


def test_the_command_offers_the_methods_and_allocations_that_there_are():
    assert ("auto", *METHODS) == OFFERED_METHODS  # repeated there, so that --help needs no torch
    assert ("auto", *ALLOCATIONS) == OFFERED_ALLOCATIONS


def test_a_network_that_returns_no_logits_is_refused():
    network = own_networks.tuple_of_two(10)
    with pytest.raises(InputError, match=r"which returns logits \(1, K\) for one image, but returned a tuple"):
        Compressor(network, [torch.zeros(8, 1, 12, 12)])


def test_a_dense_layer_says_whether_factors_could_be_smaller(compressor, halved) -> None:
    dense_ones = {layer.name: layer.reason for layer in halved.layers if layer.method == "dense"}
    dense_ones.pop("classifier")
    assert dense_ones
    table = compressor.tables("tucker2", halved.allocation)
    for name, reason in dense_ones.items():
        smaller = any(candidate.choice is not None for candidate in table[name])
        expected = "the budget is met with less loss by other layers" if smaller else "no factors are smaller"
        assert reason == expected


def test_a_layer_without_smaller_factors_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 32, 3), nn.ReLU(),
                            nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 10)).eval()  # fmt: skip
    small = Compressor(network, [torch.randn(16, 1, 8, 8)], calibration=16).compress(0.8, method="svd")
    assert {layer.name: layer.reason for layer in small.layers}["0"] == "no factors are smaller"


def test_methods_that_are_alike_for_linear_maps_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(192, 24), nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()  # fmt: skip
    compressor = Compressor(network, [torch.randn(16, 1, 8, 8)], calibration=16)
    measured: list[tuple[str, str]] = []
    divergence_with = Compressor._divergence_with

    def count(self, layer, choice):
        measured.append((layer.name, choice.method.name))
        return divergence_with(self, layer, choice)

    monkeypatch.setattr(Compressor, "_divergence_with", count)
    tables = {name: compressor.tables(name, "sensitivity") for name in ("spatial_svd", "tucker2")}
    assert {name for name, method in measured if method == "spatial_svd"} == {"0", "2", "4"}
    assert {name for name, method in measured if method == "tucker2"} == {"0", "2"}
    first, second = ([(one.costs, one.error) for one in table["4"]] for table in tables.values())
    assert first == second


def test_a_network_that_cannot_take_two_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the network cannot take images of \(1, 12, 12\): unflatten: "):
        Compressor(own_networks.batch_of_one(10), [torch.zeros(8, 1, 12, 12)])


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = own_networks.own_activation(10)
    network.lock = threading.Lock()
    with pytest.raises(InputError, match=r"^Sequential cannot be copied, .*: TypeError: cannot pickle '_thread.lock'"):
        Compressor(network, [torch.zeros(8, 1, 12, 12)])


def test_what_is_around_a_network_is_taken_off() -> None:
    images = [torch.randn(16, 1, 12, 12)]
    compressor = Compressor(own_networks.parallel(10).eval(), images, calibration=16)
    assert [layer.name for layer in compressor.layer_list.layers] == ["0", "2"]
