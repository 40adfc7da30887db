"""Weight decay of structured networks: plain, compression-scaled, or on the weights that factors stand for.

Plain decay treats a factor as any parameter. Compression-scaled decay multiplies it by K/N: a Gaussian prior on the N
dense weights keeps its total variance when K parameters stand for them. Frobenius decay leaves the factors alone and
penalises ||W||^2 of each weight W that they make up (Khodak et al. 2021, "Initialization and regularization of
factorized neural layers"). All other parameters have plain decay throughout, depthwise convolutions included.

Letters: K parameters of the structured form, N parameters that it replaces, I in-channels, O out-channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import nn

from lowrank.compression import factor_parameters
from lowrank.layers import KernelChain, SeparableConv2d, StructuredMap
from lowrank.training.recipe import Recipe


def factor_decays(network: nn.Module, recipe: Recipe, decay_ratio: float) -> dict[int, float]:
    """Compute the weight decay that the optimizer applies to each factor.

    Args:
        network: is not changed.
        recipe: has the kind, scope and strength of the decay.
        decay_ratio: K / N of the whole network, for the scope "network".

    Returns:
        Decays by the parameter's id; 0 under Frobenius decay, which is no part of the optimizer.
    """
    factors = [id(factor) for factor in factor_parameters(network)]
    if recipe.decay == "frobenius":
        return dict.fromkeys(factors, 0.0)
    ratios = dict.fromkeys(factors, decay_ratio if recipe.decay == "scaled" else 1.0)
    if recipe.decay_scope == "layer":  # a valid recipe has it only with decay "scaled"
        ratios = layer_ratios(network)
    return {factor: recipe.weight_decay * recipe.decay_multiplier * ratios[factor] for factor in factors}


def layer_ratios(network: nn.Module) -> dict[int, float]:
    """Compute K / N of the layer that each factor belongs to, without biases.

    K counts all of the layer's weights, a depthwise part included. N counts those of the convolution or linear map that
    it replaces or, in a network published as separable (DARTS), of its separable form.

    Args:
        network: is not changed.

    Returns:
        Ratios by the parameter's id.
    """
    separable = getattr(network, "base", "dense") == "separable"
    ratios = {}
    for layer in _layers(network):
        params = sum(value.numel() for name, value in layer.named_parameters() if name.rpartition(".")[2] != "bias")
        ratio = params / _replaced(layer, separable)
        ratios.update({id(factor): ratio for factor in factor_parameters(layer)})
    return ratios


def _layers(network: nn.Module) -> Iterator[SeparableConv2d | StructuredMap | KernelChain]:
    """Yield each outermost structured layer once."""
    inside: set[int] = set()
    for module in network.modules():
        if isinstance(module, SeparableConv2d | StructuredMap | KernelChain) and id(module) not in inside:
            inside.update(id(part) for part in module.modules())
            yield module


def _replaced(layer: SeparableConv2d | StructuredMap | KernelChain, separable: bool) -> int:
    """Compute N of one layer."""
    if isinstance(layer, KernelChain):
        return prod(layer.weight_shape)
    first, last = (layer.depthwise, layer.pointwise) if isinstance(layer, SeparableConv2d) else (layer, layer)
    area = prod(first.kernel_size if isinstance(first, nn.Conv2d) else first.kernel)
    pointwise = last.in_channels * last.out_channels // last.groups
    if separable:
        return pointwise + (area * last.in_channels if area > 1 else 0)
    return pointwise * area


def penalised_maps(network: nn.Module, recipe: Recipe) -> list[StructuredMap]:
    """Find the maps whose weights Frobenius decay penalises.

    Args:
        network: is not changed.
        recipe: has the kind of decay.

    Returns:
        The maps with trained factors; none under another decay. A dense map needs no penalty: its plain decay is the
        same.
    """
    if recipe.decay != "frobenius" or recipe.weight_decay == 0:
        return []
    maps = [module for module in network.modules() if isinstance(module, StructuredMap)]
    return [layer for layer in maps if any(factor.requires_grad for factor in layer.factors())]


def add_frobenius_gradient(maps: Sequence[StructuredMap], strength: float) -> None:
    """Add the gradient of strength / 2 * ||W||^2 to the gradients of each map's factors.

    Args:
        maps: from `penalised_maps`.
        strength: acts on W as torch's `weight_decay` acts on a parameter.
    """
    for layer in maps:  # one backward pass for each: only one map's intermediate tensors are in memory at a time
        (strength / 2 * layer.squared_norm()).backward()
