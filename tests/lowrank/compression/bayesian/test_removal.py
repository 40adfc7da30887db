"""Removing groups: equal to masking them, counted as built, solved to budgets, with the bits that the paper counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from lowrank.compression import (
    KEEP_ALL,
    Budget,
    RemovedSizes,
    Remover,
    bit_width,
    even_share,
    groups_below,
    make_variational,
    mixed_bytes,
    network_plan,
    posterior_mean,
    round_significand,
    smallest_sizes,
    solve_threshold,
)
from lowrank.errors import InfeasibleError, InputError
from lowrank.layers import Bayesian, Dense, HorseshoeScales, variational_layers
from lowrank.networks import NetworkSettings, make_network

PRIORS = ("normal_jeffreys", "horseshoe")
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "mlp": ({"hidden": (30, 20)}, (1, 8, 8)), "resnet9": ({"width": 0.1}, (3, 16, 16)),
    "vgg16": ({"width": 0.1}, (3, 32, 32)), "resnet18": ({"width": 0.1, "stem": "small"}, (3, 32, 32)),
}  # fmt: skip
REMOVED = ("mlp", "resnet9", "vgg16")


def trained(name: str, prior: str = "normal_jeffreys") -> tuple[nn.Module, NetworkSettings, torch.Tensor]:
    """Make a network whose norms and posteriors are far from their start, and images for it."""
    fields, shape = NETWORKS[name]
    settings = NetworkSettings(name=name, **fields)
    torch.manual_seed(0)
    network, images = make_network(settings, shape, 10), torch.randn(8, *shape)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.3)
    network.train()(images)
    make_variational(network, Bayesian(prior=prior))
    with torch.no_grad():
        for _, layer in variational_layers(network):
            for parameter in layer.scales.parameters():
                parameter.add_(torch.randn_like(parameter))
    return network.eval(), settings, images


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", REMOVED)
@torch.no_grad()
def test_removal_gives_the_outputs_of_masking(name: str, prior: str) -> None:
    network, settings, images = trained(name, prior)
    remover = Remover(network, settings)
    threshold = torch.cat(list(remover.scores.values())).quantile(0.6).item()
    masked = remover.masked(threshold)
    removed = remover.removed(threshold, NETWORKS[name][1], 10)
    outputs = masked(images)
    assert (outputs - removed(images)).abs().max() <= 1e-5 * outputs.abs().max().clamp_min(1)
    assert not torch.allclose(outputs, network(images)), "something was removed"
    plan = network_plan(remover.settings_at(threshold), NETWORKS[name][1], 10)
    assert sum(value.numel() for value in removed.parameters()) == plan.params(Dense())
    assert plan.params(Dense()) < network_plan(settings, NETWORKS[name][1], 10).params(Dense())


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_nothing_removed_is_the_network_of_posterior_means(name: str, prior: str) -> None:
    network, settings, images = trained(name, prior)
    torch.testing.assert_close(posterior_mean(network)(images), network(images))
    removed = Remover(network, settings).removed(KEEP_ALL, NETWORKS[name][1], 10)
    torch.testing.assert_close(removed(images), network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_networks_are_masked_and_counted_so() -> None:
    network, settings, _ = trained("resnet18")
    remover = Remover(network, settings)
    assert remover.is_masked
    threshold = torch.cat(list(remover.scores.values())).quantile(0.5).item()
    removed = remover.removed(threshold, NETWORKS["resnet18"][1], 10)
    layers = [module for module in removed.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    assert zeros == remover.masked_parameters(threshold) > 0
    sizes = RemovedSizes(remover, NETWORKS["resnet18"][1], 10)
    total = sum(value.numel() for value in removed.parameters())
    assert sizes.counts(threshold)["params"] == total - zeros
    assert sizes.counts(threshold)["mult_adds"] == sizes.counts(KEEP_ALL)["mult_adds"], "the whole network still runs"
    with pytest.raises(InputError, match="only masked"):
        solve_threshold(remover, sizes, Budget(mult_adds=1000))


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("quantity", ["params", "mult_adds", "bytes"])
def test_the_largest_threshold_within_a_budget_is_found(name: str, quantity: str) -> None:
    network, settings, _ = trained(name)
    remover, shape = Remover(network, settings), NETWORKS[name][1]
    sizes = RemovedSizes(remover, shape, 10)

    def measure(threshold: float) -> int:
        return sizes.bytes(threshold) if quantity == "bytes" else sizes.counts(threshold)[quantity]

    limit = int(0.3 * measure(KEEP_ALL))
    threshold = solve_threshold(remover, sizes, Budget(**{quantity: limit}))
    higher = min(value for value in torch.cat(list(remover.scores.values())).tolist() if value > threshold)
    assert measure(threshold) <= limit < measure(higher)
    assert solve_threshold(remover, sizes, Budget(**{quantity: measure(KEEP_ALL)})) == KEEP_ALL


@pytest.mark.parametrize("name", [*REMOVED, "resnet18"])
def test_every_layer_keeps_its_part_of_an_even_removal(name: str) -> None:
    network, settings, _ = trained(name)
    layers, shape = dict(variational_layers(network)), NETWORKS[name][1]
    hopeless = list(layers)[-2]
    with torch.no_grad():  # a threshold that keeps groups of other layers removes all groups of this one
        layers[hopeless].scales.location.fill_(0)
        layers[hopeless].scales.log_variance.copy_(torch.linspace(5, 6, layers[hopeless].scales.groups))
    whole = RemovedSizes(Remover(network, settings), shape, 10).counts(KEEP_ALL)["params"]
    budget = Budget(params=int(0.1 * whole))
    even = even_share(network, settings, shape, 10, budget)

    def solved(min_groups: float) -> tuple[dict[str, torch.Tensor], int]:
        remover = Remover(network, settings, min_share=min_groups * even)
        sizes = RemovedSizes(remover, shape, 10)
        threshold = solve_threshold(remover, sizes, budget)
        return groups_below(remover.scores, threshold), sizes.counts(threshold)["params"]

    assert 0 < even < 1
    masks, params = solved(0.5)
    assert params <= 0.1 * whole
    assert all(int(mask.sum()) >= 0.5 * even * len(mask) for mask in masks.values())
    assert int(masks[hopeless].sum()) == math.ceil(0.5 * even * len(masks[hopeless]))
    (alone, params) = solved(0.0)
    assert int(alone[hopeless].sum()) == 1
    assert params <= 0.1 * whole
    equal, params = solved(1.0)
    assert params <= 0.1 * whole
    lowest = layers[hopeless].scales.scores().argsort()[: int(equal[hopeless].sum())]
    assert equal[hopeless][lowest].all(), "those with the lowest scores stay"


def test_bytes_are_those_of_the_file() -> None:
    network, settings, _ = trained("mlp")
    remover, shape = Remover(network, settings), NETWORKS["mlp"][1]
    removed = remover.removed(0.0, shape, 10)
    assert RemovedSizes(remover, shape, 10).bytes(0.0) == len(save(removed.state_dict()))


@pytest.mark.parametrize("name", REMOVED)
def test_a_budget_below_one_group_a_layer_is_refused(name: str) -> None:
    network, settings, _ = trained(name)
    remover, shape = Remover(network, settings), NETWORKS[name][1]
    with pytest.raises(InfeasibleError, match="cannot be that small"):
        solve_threshold(remover, RemovedSizes(remover, shape, 10), Budget(params=5))
    smallest = smallest_sizes(settings, shape, 10)
    assert smallest is not None
    assert smallest["params"] <= RemovedSizes(remover, shape, 10).counts(-1e9)["params"]


@pytest.mark.parametrize("name", REMOVED)
@torch.no_grad()
def test_of_a_layer_whose_groups_are_equally_dead_one_stays(name: str) -> None:
    network, settings, images = trained(name)
    layers, shape = dict(variational_layers(network)), NETWORKS[name][1]
    for layer in layers.values():
        layer.scales.location.fill_(1)
        layer.scales.log_variance.fill_(-9)
    dead = list(layers)[-2]
    layers[dead].scales.location.fill_(0)
    layers[dead].scales.log_variance.fill_(2)
    remover = Remover(network, settings)
    masks = groups_below(remover.scores, 0.0)
    assert {layer: int((~mask).sum()) for layer, mask in masks.items() if not mask.all()} == {
        dead: layers[dead].scales.groups - 1
    }
    outputs = remover.masked(0.0)(images)
    assert (outputs - remover.removed(0.0, shape, 10)(images)).abs().max() <= 1e-5 * outputs.abs().max().clamp_min(1)
    sizes = RemovedSizes(remover, shape, 10)
    smallest = smallest_sizes(settings, shape, 10)
    assert smallest is not None
    threshold = solve_threshold(remover, sizes, Budget(params=smallest["params"]))
    assert sizes.counts(threshold)["params"] == smallest["params"], "also where all groups have one score"


def test_a_channel_of_a_skip_connection_stays_while_one_side_needs_it() -> None:
    network, settings, images = trained("resnet9")
    layers = dict(variational_layers(network))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.scales.log_variance.fill_(-9)
            layer.scales.location.fill_(1)
            if name in ("stage1.0.0", "stage1.1.second.0"):
                layer.scales.log_variance[0] = 5  # both sides of the sum give channel 0 up
        layers["stage1.0.0"].scales.log_variance[1] = 5  # one side alone gives channel 1 up
    remover = Remover(network, settings)
    before, after = remover.settings_at(KEEP_ALL).channels, remover.settings_at(0.0).channels
    assert before is not None
    assert after == (before[0], before[1] - 1, *before[2:])
    with torch.no_grad():
        outputs = remover.masked(0.0)(images)
        assert (outputs - remover.removed(0.0, NETWORKS["resnet9"][1], 10)(images)).abs().max() < 1e-5


def test_horseshoe_groups_behind_a_batch_norm_are_judged_by_their_noise() -> None:
    network, _, _ = trained("vgg16", "horseshoe")
    judged = {
        name: layer.scales.is_normalised for name, layer in variational_layers(network)
        if isinstance(layer.scales, HorseshoeScales)
    }  # fmt: skip
    assert all(judged.values()), "also the classifier: scores of layers are compared with each other"
    plain, _, _ = trained("mlp", "horseshoe")
    assert not any(
        layer.scales.is_normalised
        for _, layer in variational_layers(plain)
        if isinstance(layer.scales, HorseshoeScales)
    )
    with torch.no_grad():
        scales = dict(variational_layers(network))["stage1.0"].scales
        before = scales.scores()
        scales.gamma_location.add_(3)  # a scale that the batch norm divides out
    torch.testing.assert_close(scales.scores(), before)


def test_layers_that_cannot_be_replaced_stay_with_a_reason() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    reasons = make_variational(network, Bayesian())
    assert reasons == {"0": "already grouped (2 groups)"}
    with pytest.raises(InputError, match="plain Conv2d and Linear"):
        make_variational(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), Bayesian())


def test_bits_follow_the_posterior_variances() -> None:
    weight = torch.tensor([0.5, -0.75, 0.1, 0.9])
    wide, narrow = bit_width(weight, torch.full((4,), 0.02)), bit_width(weight, torch.full((4,), 1e-5))
    assert wide.significant == 5, "2^-5 < 2 * 0.02 < 2^-4"
    assert narrow.significant == 16
    assert bit_width(weight, torch.zeros(4)).significant == 23
    assert wide.exponent == 2
    assert wide.bits == 1 + 2 + 5
    network = nn.Sequential(nn.Linear(4, 2))
    assert mixed_bytes(network, {"0": wide}) == (8 * 8 + 2 * 32) / 8


def test_weights_are_rounded_to_their_significant_bits() -> None:
    weight = torch.tensor([1.0, 1.25, 1.3, -3.0, 0.0, 1e-3])
    assert torch.equal(round_significand(weight, 2), torch.tensor([1.0, 1.25, 1.25, -3.0, 0.0, 2.0**-10]))
    assert torch.equal(round_significand(weight, 23), weight)
