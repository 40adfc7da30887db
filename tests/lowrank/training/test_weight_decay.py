"""Weight decay of factors: plain, scaled by network or by layer, or on the weight that the factors make up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.substitution import build_student, factor_parameters
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.errors import InputError
from lowrank.layers import ConvShape, Separable, StructuredMap, TensorTrain
from lowrank.layers.linear import build_linear
from lowrank.layers.registry import METHODS, make_method
from lowrank.layers.tensor.tensor_train_ops import train_inner_product
from lowrank.networks.registry import NetworkSettings
from lowrank.training.optimizer import parameter_groups
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.training.weight_decay import add_frobenius_gradient, factor_decays, layer_ratios, penalised_maps
from lowrank.utils.validation import validate_model
from tests.contracts.method_table import Case, cases, over_cases

torch.set_num_threads(1)
REBUILDS_ITS_WEIGHT = {"acdc"}  # no formula is cheaper


def maps_of(module: nn.Module) -> list[StructuredMap]:
    return [part for part in module.modules() if isinstance(part, StructuredMap)]


def perturbed(case: Case) -> nn.Module:
    """Build the layer in float64 and change all its parameters, biases included."""
    module = case.build(dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


@over_cases(cases())
def test_squared_norm_and_its_gradient_are_those_of_the_rebuilt_weight(case):
    for part in maps_of(perturbed(case)):
        if not part.factors():
            continue
        decays, expected = part.squared_norm(), part.dense_weight().square().sum()
        assert decays.shape == ()
        assert decays.item() == pytest.approx(expected.item(), rel=1e-10)
        gradients = torch.autograd.grad(decays, part.factors())
        for gradient, expected_gradient in zip(gradients, torch.autograd.grad(expected, part.factors()), strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-10)


def test_squared_norm_of_a_dense_map():
    plain = Separable().make_map(3, 5)
    assert plain.squared_norm().item() == pytest.approx(plain.matrix.square().sum().item())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dense", "separable"} - REBUILDS_ITS_WEIGHT))
def test_squared_norm_does_not_rebuild_the_weight(name, monkeypatch):
    parts = maps_of(make_method({"name": name}).build(ConvShape(24, 24, (3, 3))))

    def fail(_: StructuredMap) -> Tensor:
        raise AssertionError("the weight was rebuilt")

    for part in parts:
        monkeypatch.setattr(type(part), "compute_weight", fail)
    assert all(part.squared_norm().item() > 0 for part in parts)


def test_the_inner_product_of_two_tensor_trains():
    torch.manual_seed(0)
    left, right = ([torch.randn(shape) for shape in ((1, 3, r), (r, 4, 2), (2, 5, 1))] for r in (2, 4))
    tensors = [torch.einsum("aib,bjc,ckd->ijk", *cores) for cores in (left, right)]
    assert train_inner_product(left, right).item() == pytest.approx((tensors[0] * tensors[1]).sum().item(), rel=1e-4)


class Small(nn.Module):
    """A separable layer, a linear map and a norm."""

    def __init__(self, name: str = "tensor_train", **settings: object):
        super().__init__()
        torch.manual_seed(0)
        method = make_method({"name": name, **settings})
        self.conv = method.build(ConvShape(8, 16, (3, 3), bias=True))
        self.linear = build_linear(method, ConvShape(16, 16, bias=True))
        self.norm = nn.BatchNorm2d(16)


def decays_by_name(network: nn.Module, recipe: Recipe, ratio: float = 0.25) -> dict[str, float]:
    groups = parameter_groups(network, recipe, ratio)
    decays = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    return {name: decays[id(value)] for name, value in network.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.25),
        ({"decay": "scaled", "decay_multiplier": 3.0}, 0.75),
        ({"scaled_decay": False}, 1.0),
        ({"decay": "plain", "decay_multiplier": 3.0}, 3.0),
        ({"decay": "plain", "decay_scope": "layer"}, 1.0),
        ({"decay": "frobenius", "decay_multiplier": 3.0}, 0.0),
    ],
)
def test_factors_have_their_own_decay(settings, expected):
    network = Small()
    factors = {id(factor) for factor in factor_parameters(network)}
    names = {name for name, value in network.named_parameters() if id(value) in factors}
    assert len(names) == 6
    for name, decay in decays_by_name(network, Recipe(weight_decay=1e-3, **settings)).items():
        assert decay == pytest.approx(1e-3 * (expected if name in names else 1.0), abs=1e-12), name


def test_the_scope_layer_gives_each_layer_its_own_ratio():
    network = Small("bottleneck", rank_scale=0.25)
    recipe = Recipe(weight_decay=1e-3, decay_scope="layer", decay_multiplier=2.0)
    decays = decays_by_name(network, recipe, ratio=0.9)
    conv, linear = 2e-3 * (9 * 8 + 4 * (8 + 16)) / (9 * 8 * 16), 2e-3 * 4 * 32 / 256
    for name, decay in decays.items():
        factor = name.endswith((".up", ".down"))
        assert decay == pytest.approx((conv if name.startswith("conv") else linear) if factor else 1e-3), name
    assert len(parameter_groups(network, recipe, 0.9)) == 3


def test_layers_of_equal_decay_share_a_group():
    network = nn.Sequential(*(make_method({"name": "cp"}).build(ConvShape(16, 16)) for _ in range(3)))
    groups = parameter_groups(network, Recipe(decay_scope="layer"), 1.0)
    assert [len(group["params"]) for group in groups] == [9]


def test_the_scope_layer_counts_the_separable_form_of_a_separable_network():
    network = Small("bottleneck", rank_scale=0.25)
    network.base = "separable"
    ratios = layer_ratios(network)
    assert ratios[id(network.conv.pointwise.up)] == pytest.approx((72 + 4 * 24) / (72 + 128))
    assert ratios[id(network.linear.pointwise.up)] == pytest.approx(4 * 32 / 256)


def test_the_scope_layer_counts_a_hashed_depthwise_part():
    network = make_method({"name": "hashed_both", "bank_scale": 0.5}).build(ConvShape(8, 16, (3, 3)))
    ratios = layer_ratios(network)
    assert set(ratios) == {id(network.depthwise.bank), id(network.pointwise.bank)}
    params = network.depthwise.bank.numel() + network.pointwise.bank.numel()
    assert list(ratios.values()) == pytest.approx([params / (9 * 8 * 16)] * 2)


def test_the_scope_layer_counts_the_kernel_of_a_spatial_map():
    network = make_method({"name": "hashed_full", "bank_scale": 0.25}).build(ConvShape(8, 16, (3, 3), bias=True))
    assert layer_ratios(network) == {id(network.bank): pytest.approx(0.25)}


def test_a_network_without_factors_has_one_group():
    assert len(parameter_groups(Small("separable"), Recipe(decay="frobenius"), 0.5)) == 1
    assert factor_decays(Small("separable"), Recipe(), 0.5) == {}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_frobenius_decay_adds_the_gradient_of_half_the_squared_norm(name):
    network = Small(name).double()
    before = {key: torch.randn_like(value) for key, value in network.named_parameters()}
    for key, value in network.named_parameters():
        value.grad = before[key].clone()
    add_frobenius_gradient(penalised_maps(network, Recipe(decay="frobenius")), 0.3)
    factors = {id(factor) for factor in factor_parameters(network)}
    for part in maps_of(network):
        expected_gradient = (
            torch.autograd.grad(part.compute_weight().square().sum() / 2, part.factors()) if part.factors() else ()
        )
        for factor, gradient in zip(part.factors(), expected_gradient, strict=True):
            key = next(key for key, value in network.named_parameters() if value is factor)
            torch.testing.assert_close(factor.grad - before[key], 0.3 * gradient, rtol=1e-9, atol=1e-11)
    for key, value in network.named_parameters():
        if id(value) not in factors:
            assert torch.equal(value.grad, before[key]), key


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(decay="plain"), Recipe(decay="frobenius", weight_decay=0)], ids=str
)
def test_maps_are_penalised_by_frobenius_decay_alone(recipe):
    assert penalised_maps(Small(), recipe) == []
    assert len(penalised_maps(Small(), Recipe(decay="frobenius"))) == 2


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=64))


def test_frobenius_decay_changes_a_step_by_its_penalty_alone(data):
    """Also with clipping, which applies to the gradient of the loss alone."""
    settings, method = NetworkSettings(width=0.125), TensorTrain(dims=3, rank_scale=0.3)
    plan = network_plan(settings, data.image_shape, 10)
    changes, penalty = [], {}
    for decay in (0.0, 0.5):
        recipe = Recipe(
            epochs=1, batch_size=64, lr=0.1, momentum=0, nesterov=False, schedule="constant", clip_norm=1e-3,
            decay="frobenius", weight_decay=decay, decay_multiplier=1.5,
        )  # fmt: skip
        network = build_student(settings, plan, method, data.image_shape, 10, 0)
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        maps = [part for part in maps_of(network) if part.factors()]
        (sum(part.compute_weight().square().sum() for part in maps) / 2).backward()
        penalty = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        network.zero_grad(set_to_none=True)
        Trainer(
            network, data, recipe, augmentation=default_augmentation("digits", data.image_shape), order_seed=0
        ).train_epoch()
        changes.append({name: value.detach() - before[name] for name, value in network.named_parameters()})
    assert len(penalty) == len(factor_parameters(network))
    for name, gradient in penalty.items():
        torch.testing.assert_close(changes[1][name] - changes[0][name], -0.1 * 0.75 * gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "decay", "scaled", "scope"),
    [
        ({}, "scaled", True, "network"),
        ({"scaled_decay": False}, "plain", False, "network"),
        ({"scaled_decay": True, "decay_scope": "layer"}, "scaled", True, "layer"),
        ({"decay": "plain"}, "plain", False, "network"),
        ({"decay": "frobenius", "decay_scope": "layer"}, "frobenius", False, "network"),
        ({"decay": "frobenius", "scaled_decay": False}, "frobenius", False, "network"),
        ({"decay": "scaled", "scaled_decay": True}, "scaled", True, "network"),
    ],
)
def test_decay_and_scaled_decay_agree(fields, decay, scaled, scope):
    recipe = Recipe(**fields)
    assert (recipe.decay, recipe.scaled_decay, recipe.decay_scope) == (decay, scaled, scope)
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "frobenius", "scaled_decay": True}, "`train`: `scaled_decay: true` contradicts `decay: frobenius`"),
        ({"decay": "plain", "scaled_decay": True}, "`scaled_decay: true` contradicts `decay: plain`; give one of the"),
        ({"decay": "scaled", "scaled_decay": False}, "`scaled_decay: false` contradicts `decay: scaled`"),
        ({"decay": "none"}, "`train.decay`: must be 'plain', 'scaled' or 'frobenius', but got 'none'"),
        ({"decay_scope": "block"}, "`train.decay_scope`: must be 'network' or 'layer', but got 'block'"),
        ({"decay_multiplier": 0}, "`train.decay_multiplier`: must be greater than 0, but got 0"),
    ],
)
def test_a_contradiction_is_reported_in_one_line(fields, message):
    with pytest.raises(InputError) as caught:
        validate_model(Recipe, fields, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
