"""A student with factors in its layers takes over a trained network: exactly at full rank, better in order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrank.compression.from_trained.allocation import divergence
from lowrank.compression.from_trained.moments import layer_calls
from lowrank.compression.from_trained.student_start import fit_student, output_errors
from lowrank.compression.from_trained.through_relu import Affine, auxiliary_targets, find_relu, relu_error
from lowrank.compression.init_from_dense import init_from_network
from lowrank.compression.substitution import build_sized_student
from lowrank.compression.trace import trace_plan
from lowrank.errors import InputError
from lowrank.layers.dense import Dense, Separable
from lowrank.layers.low_rank.spatial_svd import SpatialSVD
from lowrank.networks.registry import NetworkSettings, make_network

SHAPE, CLASSES = (1, 8, 8), 10
NETWORK = NetworkSettings(width=0.125)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A network whose logits differ from image to image, as those of a trained one do."""
    torch.manual_seed(0)
    network = make_network(NETWORK, SHAPE, CLASSES).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(64, *SHAPE))
    return network.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(160, *SHAPE, generator=torch.Generator().manual_seed(1))


def student(everything: bool = False, **settings: object) -> nn.Module:
    network = NETWORK.model_copy(update={"substitute_all": everything})
    return build_sized_student(network, {"name": "spatial_svd", **settings}, SHAPE, CLASSES).network.eval()


def distance(network: nn.Module, dense: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return divergence(network.eval()(images), dense(images))


@pytest.mark.parametrize("in_order", [False, True])
def test_a_fitted_student_is_nearer_than_truncated_weights_and_in_order_nearest(dense, images, in_order):
    truncated, fitted = student(rank_scale=0.3, bias=True), student(rank_scale=0.3, bias=True)
    init_from_network(truncated, dense)
    report = fit_student(fitted, dense, images, in_order=in_order)
    assert distance(fitted, dense, images) < 0.5 * distance(truncated, dense, images)
    names = [layer.name for layer in report.layers]
    assert names[0] == "stage1.0.0"
    assert ("classifier" in names) is in_order  # fitted again to what enters it now
    assert all(0 <= layer.output_error < 1.5 for layer in report.layers)


def test_through_the_relu_fewer_errors_are_left_behind_it(dense, images):
    errors = {}
    layer = "stage1.0.0"
    affine = find_relu(dense, dense.get_submodule(layer), images[:1])
    assert affine is not None
    for through_relu in (False, True):
        network = student(rank_scale=0.1, bias=True)
        fit_student(network, dense, images, in_order=True, through_relu=through_relu)
        pairs = layer_calls(dense, dense.get_submodule(layer), images[:120])
        errors[through_relu] = relu_error(network.get_submodule(layer), iter(pairs), affine)
    assert errors[True] < 0.99 * errors[False]


def test_a_relu_is_found_behind_a_batch_norm_and_only_there(dense, images):
    names = [name for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)]
    found = {name: find_relu(dense, dense.get_submodule(name), images[:1]) for name in names}
    assert found["stage1.0.0"] is not None
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Tanh()).eval()
    assert find_relu(plain, plain[0], images[:1]) is None
    direct = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)).eval()
    affine = find_relu(direct, direct[0], images[:1])
    assert affine is not None
    assert affine.scale.tolist() == [1, 1]


def test_auxiliary_targets_solve_their_problem():
    torch.manual_seed(0)
    trained, fitted = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    affine = Affine(torch.tensor([0.5, -2.0, 1.0]), torch.tensor([0.1, 0.3, -0.2]))
    scale, shift = affine.scale[:, None, None], affine.shift[:, None, None]

    def cost(z: torch.Tensor) -> torch.Tensor:
        gap = torch.relu(trained * scale + shift) - torch.relu(z * scale + shift)
        return gap.square() + 0.3 * (scale * (z - fitted)).square()

    least = cost(auxiliary_targets(trained, fitted, affine, 0.3))
    for step in torch.linspace(-4, 4, 161):
        assert (least <= cost(fitted + step) + 1e-5).all()


def test_the_student_keeps_its_mode_and_the_trained_network_its_weights(dense, images):
    fitted, before = student(rank_scale=0.3).train(), copy.deepcopy(dense.state_dict())
    fit_student(fitted, dense, images[:32])
    assert fitted.training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_other_structures_than_factors_of_kernels_are_refused(dense, images):
    separable = build_sized_student(NETWORK, {"name": "separable"}, SHAPE, CLASSES).network
    with pytest.raises(InputError, match="is a SeparableConv2d, but only factors of whole kernels are fitted"):
        fit_student(separable, dense, images)


def test_output_errors_are_zero_for_equal_layers_and_grow_as_rank_falls(dense, images):
    errors = []
    for scale in (0.9, 0.3):
        network = student(rank_scale=scale)
        init_from_network(network, dense)
        errors.append(output_errors(network, dense, images))
    fine, coarse = errors
    assert fine.keys() <= coarse.keys()
    assert all(fine[name] < coarse[name] for name in fine)
    layer = next(iter(coarse))
    exact = student(rank_scale=0.3)
    init_from_network(exact, dense)
    with torch.no_grad():  # the trained network computes the same there now
        plain = copy.deepcopy(dense)
        plain.get_submodule(layer).weight.copy_(exact.get_submodule(layer).dense_weight())
    assert output_errors(exact, plain, images)[layer] == pytest.approx(0, abs=1e-5)


def test_substitute_all_takes_the_stem_and_keeps_the_layer_that_gives_the_classes():
    network = make_network(NETWORK, SHAPE, CLASSES)
    usual, everything = trace_plan(network, SHAPE), trace_plan(network, SHAPE, everything=True)
    reasons = {site.name: site.keep_reason for site in everything.sites if site.keep_reason}
    assert reasons == {"classifier": "it gives the classes"}
    assert everything.substituted[0].name not in [site.name for site in usual.substituted]
    assert everything.params(Dense()) == usual.params(Dense())
    assert everything.params(SpatialSVD()) < usual.params(Separable()) or everything.fixed_params < usual.fixed_params


class DoubledLinear(nn.Linear):
    """No plain layer: twice what its weight gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_last_layer_that_is_not_plain_keeps_its_weights(dense, images):
    doubled, fitted = copy.deepcopy(dense), student(rank_scale=0.3, bias=True)
    for network in (doubled, fitted):
        network.classifier.__class__ = DoubledLinear
    report = fit_student(fitted, doubled, images)
    assert torch.equal(fitted.classifier.weight, dense.classifier.weight)
    assert "classifier" not in [layer.name for layer in report.layers]
