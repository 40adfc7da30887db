"""Put variational layers into a network, and the posterior means of its weights back into plain layers."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import nn

from lowrank.compression.inspection.plain_layers import ModuleUses
from lowrank.errors import InputError
from lowrank.layers import Bayesian, HorseshoeScales, VariationalConv2d, VariationalLayer, VariationalLinear, as_linear
from lowrank.networks import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class VariationalSettings:
    """What a network with variational layers was made from.

    Attributes:
        method: the prior and how it is trained.
        network: the dense network.
    """

    method: Bayesian
    network: NetworkSettings


def make_variational(network: nn.Module, method: Bayesian) -> dict[str, str]:
    """Replace plain convolutions and linear maps by variational ones, in place.

    Each begins near the layer that it replaces.

    Args:
        network: any module; also its stem and the layer that gives the classes are replaced.
        method: settings of the layers.

    Returns:
        The convolutions and linear maps that stay, by name, each with the reason.

    Raises:
        InputError: no layer can be replaced; the network is unchanged.
    """
    uses, reasons, layers = ModuleUses(network), dict[str, str](), dict[str, nn.Conv2d | nn.Linear]()
    attention = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if any(name.startswith(f"{prefix}.") for prefix in attention):
                reasons[name] = "attention uses its weight by itself"
            elif reason := uses.reason_not_plain(module) or _reason_of_shape(module):
                reasons[name] = reason
            else:
                layers[name] = module
    if not layers:
        raise InputError(f"bayesian replaces plain Conv2d and Linear layers, but {type(network).__name__} has none")
    normalised = _has_normalised_convolution(network)
    for name, module in layers.items():
        layer = method.make_layer(module)
        if isinstance(layer.scales, HorseshoeScales):
            layer.scales.is_normalised = normalised  # of all layers, for their scores are compared with each other
        _replace(network, name, layer)
    return reasons


def _has_normalised_convolution(network: nn.Module) -> bool:
    """Whether a batch norm follows a convolution, in the order in which modules were made."""
    leaves = [module for module in network.modules() if not list(module.children())]
    return any(
        isinstance(module, nn.Conv2d) and isinstance(following, nn.modules.batchnorm._BatchNorm)
        and following.num_features == module.out_channels
        for module, following in itertools.pairwise(leaves)
    )  # fmt: skip


def _reason_of_shape(module: nn.Conv2d | nn.Linear) -> str:
    if isinstance(module, nn.Linear):
        return ""
    if module.groups > 1:
        return f"already grouped ({module.groups} groups)"
    return "" if module.padding_mode == "zeros" else f"padding mode {module.padding_mode!r}"


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, layer)


@torch.no_grad()
def posterior_mean(network: nn.Module) -> nn.Module:
    """Copy a network with the posterior means of its weights in plain layers.

    Args:
        network: has variational layers; it is not changed.

    Returns:
        The copy, in evaluation mode, whose outputs are those of the network in evaluation mode.
    """
    clone = copy.deepcopy(network).eval()
    layers = [(name, layer) for name, layer in clone.named_modules() if isinstance(layer, VariationalLayer)]
    for name, layer in layers:
        _replace(clone, name, _plain_layer(layer))
    return clone


def _plain_layer(layer: VariationalLayer) -> nn.Module:
    if isinstance(layer, VariationalLinear):
        return as_linear(layer.weight, layer.bias)
    assert isinstance(layer, VariationalConv2d)
    bias = layer.mean_bias()
    conv: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride,
        padding=layer.padding, dilation=layer.dilation, bias=bias is not None, device=layer.weight_mean.device,
    )  # fmt: skip
    conv.weight.copy_(layer.weight)
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv
