"""Networks as people bring them: what is counted, what is replaced, what is kept and why, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.compression.file_size import measure_file_size
from lowrank.compression.init_from_dense import init_from_network
from lowrank.compression.inspection.builder_weights import find_builder_weights, keeps_own_weights
from lowrank.compression.inspection.network_pass import check_logits, unfused_attention
from lowrank.compression.inspection.plain_layers import register_equivalent
from lowrank.compression.merging import merge
from lowrank.compression.plan import ATTENTION
from lowrank.compression.substitution import build_student, substitute
from lowrank.compression.trace import FROZEN, LINEAR, network_plan, network_to_count, trace_plan
from lowrank.errors import InputError, UncountableError
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers import Bottleneck, Dense, Separable, SeparableConv2d
from lowrank.layers.registry import make_method
from lowrank.networks.own_networks import prepare_network
from lowrank.networks.registry import NetworkSettings, make_network
from tests.support import own_networks

torch.set_num_threads(1)  # tiny layers

IMAGE, CLASSES = (1, 12, 12), 10
IMAGES = torch.linspace(-1, 1, 2 * 144).reshape(2, *IMAGE)
NORMALISED = "its weight is computed from other parameters"


def settings(function: str, **fields: object) -> NetworkSettings:
    """The settings of a network of `tests.support.own_networks`."""
    return NetworkSettings(name=f"tests.support.own_networks:{function}", **fields)


def student_of(function: str, method: Dense | Separable | Bottleneck, **fields: object) -> nn.Module:
    """Build a network of `tests.support.own_networks` with a method in its sites."""
    network = settings(function, **fields)
    return build_student(network, network_plan(network, IMAGE, CLASSES), method, IMAGE, CLASSES, seed=3)


def dense_of(function: str) -> nn.Module:
    """Build the network itself, with the weights that a student of the same seed begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make_network(settings(function), IMAGE, CLASSES)


# Of each network: reasons of what is kept besides stem and linear maps, and how many layers are replaced
NETWORKS: dict[str, tuple[dict[str, str], int]] = {
    "lazy": ({}, 1),
    "same_padded": ({"2.conv": "SamePaddedConv has a forward of its own"}, 1),
    "weight_norm": ({"2": NORMALISED}, 0),
    "weight_norm_by_hook": ({"0": NORMALISED}, 1),
    "own_activation": ({}, 1),
    "layer_scale": ({}, 1),
    "boxed": ({}, 1),
    "dictionary": ({}, 1),
    "tuple_of_one": ({}, 1),
    "encoder": ({"layer.self_attn": ATTENTION}, 0),
    "class_token": ({"layer.self_attn": ATTENTION}, 0),
    "tied_parameter": (
        {"5.0": "its weight is shared with another layer", "5.2": "its weight is shared with another layer"}, 1,
    ),
    "tied_layer": ({}, 2),
    "branch": ({}, 1),
    "frozen": ({"2": FROZEN}, 1),
    "trained": ({}, 1),
    "embedding": ({}, 1),
    "log_probabilities": ({}, 1),
    "parallel": ({}, 1),
    "rms_norm": ({}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_networks_are_what_their_builder_returns(name: str) -> None:
    reasons, replaced = NETWORKS[name]
    plan = network_plan(settings(name), IMAGE, CLASSES)
    named = {site: reason for site, reason in plan.kept if reason not in ("the stem", LINEAR)}
    assert (named, len(plan.substituted)) == (reasons, replaced)
    original, dense, student = dense_of(name).eval(), student_of(name, Dense()), student_of(name, Separable())
    assert torch.equal(dense.eval()(IMAGES), original(IMAGES))
    for network, method in ((dense, Dense()), (student, Separable())):
        assert sum(parameter.numel() for parameter in network.parameters()) == plan.params(method)
    student.train()(IMAGES).square().mean().backward()
    assert student.eval()(IMAGES).shape == (2, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_substituting_dense_changes_no_output(name: str) -> None:
    network = dense_of(name).eval()
    expected = network(IMAGES)
    substitute(network, Dense(), IMAGE, linear=True)
    assert torch.equal(network(IMAGES), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_inputs", r"cannot take images of \(1, 12, 12\): TypeError: .*missing 1 required positional arg"),
        ("too_many_outputs", "must give one output for each of 10 classes, but gives 1000"),
        ("too_few_outputs", "must give one output for each of 10 classes, but gives 5"),
        ("regression", "must give one output for each of 10 classes, but gives 1"),
        ("segmenter", r"must be a classifier, .* but returned float32 \(1, 10, 12, 12\)"),
        ("detector", "must be a classifier, .* but returned a list of 1: a dictionary of boxes, scores"),
        ("tuple_of_two", r"must be a classifier, .* but returned a tuple of 2: float32 \(1, 10\), float32 \(1, 1, 12"),
        ("half", r"must have float32 weights, but `0\.weight` is float16: return network\.float\(\)"),
        ("no_parameters", "has no parameters, so there is nothing to train"),
        ("failing_builder", r"raised an error for failing_builder\(num_classes=10\): KeyError: 'checkpoint'"),
        ("probabilities", r"must return logits, but its outputs are probabilities .*: leave the softmax out of"),
        (
            "in_place",
            r"InPlace changes the images that it is given, in place, .*: let `forward` begin with x = x",
        ),
        ("stateful", r"keeps `_extra_state` in its state, a dict, but files of weights hold tensors alone"),
        ("traced", r"returned a TorchScript network, whose layers cannot be replaced: return the nn\.Module that"),
        ("failing_forward", r"cannot take images of \(1, 12, 12\): IndexError: no such stage"),
    ],
)
def test_networks_that_cannot_be_used_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        network_plan(settings(name), IMAGE, CLASSES)
    assert "\n" not in str(caught.value)


def test_a_class_with_a_forward_of_its_own_is_replaced_once_it_is_declared_equivalent() -> None:
    class Logged(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Changed(Logged):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    network = own_networks.sequence([Logged(16, 16, 3), Changed(16, 32, 3)], CLASSES)
    reason = "{} has a forward of its own"
    assert dict(trace_plan(network, IMAGE).kept)["2"] == reason.format("Logged")
    assert register_equivalent(Logged) is Logged
    plan = trace_plan(network, IMAGE)
    assert [site.name for site in plan.substituted] == ["2"]
    assert dict(plan.kept)["3"] == reason.format("Changed")
    with pytest.raises(InputError, match=r"must derive from nn\.Conv2d or nn\.Linear"):
        register_equivalent(nn.Conv1d)


@pytest.mark.parametrize("layer", [own_networks.Standardised(16, 32, 3), own_networks.SamePaddedConv(16, 32, 3)])
def test_convolutions_with_weights_or_padding_of_their_own_stay(layer: nn.Conv2d) -> None:
    network = own_networks.sequence([layer], CLASSES).eval()
    expected = network(IMAGES)
    assert substitute(network, Separable(), IMAGE).changed == ()
    assert torch.equal(network(IMAGES), expected)


def test_linear_maps_with_a_forward_of_their_own_stay() -> None:
    network = own_networks.sequence([], CLASSES, head=own_networks.ScaledLinear(16, CLASSES))
    assert dict(trace_plan(network, IMAGE, linear=True).kept)["4"] == "ScaledLinear has a forward of its own"


def test_a_forward_that_was_replaced_on_the_module_stays() -> None:
    network = own_networks.sequence([nn.Conv2d(16, 32, 3)], CLASSES)
    forward = network[2].forward
    network[2].forward = lambda x: 2 * forward(x)
    assert dict(trace_plan(network, IMAGE).kept)["2"] == "Conv2d has a forward of its own"


def test_layers_with_hooks_or_other_parameters_stay() -> None:
    activations: list[Tensor] = []
    hooked, before, masked, spectral = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
    hooked.register_forward_hook(lambda module, inputs, output: activations.append(output))
    before.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    masked.register_buffer("mask", torch.ones(16))
    layers = [
        hooked, before, masked, torch.nn.utils.spectral_norm(spectral),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 32, 3)),
    ]  # fmt: skip
    network = own_networks.sequence(layers, CLASSES)
    plan = trace_plan(network, IMAGE)
    assert dict(plan.kept) == {
        "0": "the stem", "2": "hooks are attached to it", "3": "hooks are attached to it",
        "4": "it has buffers of its own (mask)", "5": NORMALISED, "6": NORMALISED, "9": LINEAR,
    }  # fmt: skip
    assert plan.params(Dense()) == sum(parameter.numel() for parameter in network.parameters())
    substitute(network, Separable(), IMAGE)
    activations.clear()
    network(IMAGES)
    assert len(activations) == 1


def test_a_layer_that_an_attribute_refers_to_stays() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 32, 1), nn.Linear(32, CLASSES)
            self.order = [self.body]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.order:
                x = layer(x)
            return self.head(x.mean((2, 3)))

    assert dict(trace_plan(Listed(), IMAGE).kept)["body"] == "Listed.order refers to it too"


@pytest.mark.parametrize("name", ["svd", "bottleneck", "tensor_train", "hashed"])
def test_the_fused_kernel_of_a_transformer_layer_uses_the_replaced_weights(name: str) -> None:
    network = dense_of("class_token").eval()
    assert substitute(network, make_method({"name": name}), IMAGE, keep=("head",), linear=True).changed == (
        "layer.linear1", "layer.linear2",
    )  # fmt: skip
    with torch.no_grad():
        fused = network(IMAGES)
        with unfused_attention():
            assert torch.allclose(network(IMAGES), fused, atol=1e-5)
    assert network.layer.linear1.weight.shape == (64, 32)


def test_a_shared_layer_is_counted_once_and_stays_shared() -> None:
    plan = network_plan(settings("tied_layer"), IMAGE, CLASSES)
    student = student_of("tied_layer", Separable())
    assert [site.name for site in plan.substituted] == ["2", "5"]
    assert isinstance(student[2], SeparableConv2d)
    assert student[4] is student[2]
    shared = 16 * 16 * 9 * 144
    assert plan.substituted[0].mult_adds == 2 * shared
    merged = merge(copy.deepcopy(student).eval())
    assert isinstance(merged[2], nn.Conv2d)
    assert merged[4] is merged[2]
    assert torch.allclose(merged(IMAGES), student.eval()(IMAGES), atol=1e-5)


def test_shared_layers_and_parameters_are_saved_and_read(tmp_path: Path) -> None:
    for name in ("tied_layer", "tied_parameter"):
        student, second = student_of(name, Separable()), student_of(name, Separable())
        nn.init.ones_(second[2].pointwise.matrix)
        path = tmp_path / f"{name}.safetensors"
        save_tensors(path, student.state_dict(), {})
        second.load_state_dict(load_tensors(path)[0])
        assert torch.equal(second.eval()(IMAGES), student.eval()(IMAGES))


@pytest.mark.parametrize("method", [Separable(), Dense()])
def test_the_size_on_disk_of_a_shared_layer_is_that_of_the_file(method: Separable | Dense, tmp_path: Path) -> None:
    network = settings("tied_layer")
    size = measure_file_size(network_to_count(network, IMAGE, CLASSES), network_plan(network, IMAGE, CLASSES), method)
    state = student_of("tied_layer", method).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "file")
    assert size.bytes == (tmp_path / "file").stat().st_size


def test_a_shared_layer_starts_from_its_dense_form() -> None:
    student, dense = student_of("tied_layer", Separable()), dense_of("tied_layer")
    report = init_from_network(student, dense)
    assert [layer.name for layer in report.layers] == ["2", "4", "5"]
    assert report.layers[0].error == report.layers[1].error
    assert student[4] is student[2]


@pytest.mark.parametrize("frozen", ["keep", "replace"])
def test_frozen_layers_are_kept_or_replaced_by_frozen_ones(frozen: str) -> None:
    student = student_of("frozen", Separable(), frozen=frozen)
    assert isinstance(student[2], nn.Conv2d if frozen == "keep" else SeparableConv2d)
    assert not any(parameter.requires_grad for parameter in student[2].parameters())
    assert all(parameter.requires_grad for name, parameter in student.named_parameters() if not name.startswith("2."))
    if frozen == "keep":
        assert torch.equal(student[2].weight, dense_of("frozen")[2].weight)


def test_the_default_of_frozen_is_left_out_of_dumps() -> None:
    assert "frozen" not in NetworkSettings().model_dump()
    assert NetworkSettings(frozen="replace").model_dump()["frozen"] == "replace"


def test_students_of_a_trained_network_draw_all_weights_anew() -> None:
    dense, student, other = (
        student_of("trained", Dense()), student_of("trained", Separable()), student_of("trained", Bottleneck()),
    )  # fmt: skip
    assert torch.equal(dense[0].weight, own_networks.trained(CLASSES)[0].weight)
    assert find_builder_weights(settings("trained"), IMAGE, CLASSES).modules == ("0", "2", "6")
    for index in (0, 6):
        assert not torch.equal(student[index].weight, dense[index].weight)
        assert torch.equal(student[index].weight, other[index].weight)  # by the seed alone
    assert find_builder_weights(settings("layer_scale"), IMAGE, CLASSES).modules == ()
    init_from_network(student, dense)
    assert torch.equal(student[0].weight, dense[0].weight)


@pytest.mark.parametrize(
    ("name", "weights", "keeps"),
    [
        ("tests.support.own_networks:trained", None, True), ("timm:test_vit", None, False),
        ("timm:test_vit", "DEFAULT", True), ("hf:folder", None, False), ("hf:folder", "DEFAULT", True),
        ("torchvision:resnet18", None, False), ("torchvision:resnet18", "DEFAULT", True), ("resnet9", None, False),
    ],
)  # fmt: skip
def test_published_networks_have_weights_of_their_own_only_where_they_are_named(name, weights, keeps) -> None:
    assert keeps_own_weights(NetworkSettings(name=name, weights=weights)) is keeps


def test_substitution_leaves_the_mode_of_each_module() -> None:
    network = own_networks.sequence([nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3)], CLASSES).train()
    network[2].eval()
    substitute(network, Separable(), IMAGE)
    assert not network[2].training
    assert network[3].training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_substituted_in_their_type(dtype: torch.dtype) -> None:
    network = own_networks.sequence([nn.Conv2d(16, 32, 3)], CLASSES).to(dtype)
    assert substitute(network, Bottleneck(), IMAGE).changed == ("2",)
    assert network(IMAGES.to(dtype)).dtype == dtype


def test_a_pass_leaves_buffers_as_they_were() -> None:
    class Counter(own_networks.Boxed):
        def __init__(self) -> None:
            super().__init__(CLASSES)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.mean()[None] + 1
            return self.body(x)

    network = Counter()
    buffers = dict(network.named_buffers())
    substitute(network, Separable(), IMAGE)
    assert all(value is buffers[name] for name, value in network.named_buffers())
    assert not any(bool(value) for value in buffers.values())


def test_what_compiles_a_network_or_spreads_it_over_devices_is_taken_off() -> None:
    inside = own_networks.sequence([nn.Conv2d(16, 32, 3)], CLASSES)
    compiled = nn.Module()
    compiled.add_module("_orig_mod", inside)  # as torch.compile keeps it
    assert prepare_network(nn.DataParallel(compiled), "own:make", IMAGE) is inside


@pytest.mark.parametrize(("name", "params"), [("embedding", 12 * 16), ("rms_norm", 12)])
def test_tables_and_norms_are_other_parameters_and_stay(name: str, params: int) -> None:
    plan = network_plan(settings(name), IMAGE, CLASSES)
    assert plan.other_params == params
    assert plan.other_mult_adds == 0
    dense, student = dense_of(name), student_of(name, Separable())
    assert type(student[2]) is type(dense[2])
    assert sum(value.numel() for value in student[2].parameters()) == params


def test_a_deformable_convolution_is_named_in_one_line() -> None:
    message = (
        r"^the network runs own_networks\.deform_conv2d, which has no counting rule; give one by "
        r"lowrank\.register_counting_rule$"
    )
    with pytest.raises(UncountableError, match=message):
        network_plan(settings("deformable"), IMAGE, CLASSES)


def test_operators_of_torchvision_that_cannot_be_loaded_are_one_line() -> None:
    """What torchvision's DeformConv2d raises where its compiled operators are missing."""

    class Unloaded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("Couldn't load custom C++ ops. This can happen if your PyTorch and torchvision versions")

    network = own_networks.sequence([Unloaded(16, 32, 3)], CLASSES)
    message = r"^the network cannot take images of \(1, 12, 12\): Couldn't load custom C\+\+ ops\. [^\n]*$"
    with pytest.raises(InputError, match=message):
        trace_plan(network, IMAGE)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(1, 4), "must give one output for each of 3 classes, but gives 4"),
        (torch.zeros(1, 3, dtype=torch.int64), r"but returned int64 \(1, 3\)"),
        ({"features": torch.zeros(1)}, "but returned a dictionary of features"),
        ((torch.zeros(1, 3), torch.zeros(2)), r"but returned a tuple of 2: float32 \(1, 3\), float32 \(2,\)"),
        (SimpleNamespace(x=1), "but returned a SimpleNamespace"),
    ],
)
def test_an_output_that_is_no_logits_is_described(output, words):
    with pytest.raises(InputError, match=words):
        check_logits(output, 3, "own:make")
