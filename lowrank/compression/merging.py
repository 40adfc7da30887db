"""Turns structured layers into the plain layers that they equal, and starts them from trained weights.

Letters: I in-channels, O out-channels, K kernel size; a linear map's weight is (O, I).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.layers import (
    KernelChain,
    Pair,
    SeparableConv2d,
    StructuredLinear,
    StructuredMap,
    as_linear,
    relative_error,
)

Structured = SeparableConv2d | StructuredMap | StructuredLinear | KernelChain
Plain = nn.Conv2d | nn.Linear


def dense_weight(module: nn.Module) -> Tensor:
    """Return the weight of the plain layer that a layer equals, differentiable.

    Args:
        module: a convolution, a linear map or a structured layer.

    Returns:
        The weight (O, I / groups, K, K), or (O, I) of a linear map.

    Raises:
        InputError: `module` is another layer.
    """
    return module.weight if isinstance(module, Plain) else _structured(module).dense_weight()


def dense_bias(module: nn.Module) -> Tensor | None:
    """Return the bias of the plain layer that a layer equals.

    Args:
        module: a convolution, a linear map or a structured layer.

    Returns:
        The bias (O); None without one.

    Raises:
        InputError: `module` is another layer.
    """
    return module.bias if isinstance(module, Plain) else _structured(module).dense_bias()


def _structured(module: nn.Module) -> Structured:
    if not isinstance(module, Structured):
        raise InputError(
            f"the layer must be a convolution, a linear map or a structured layer, but got a {type(module).__name__}"
        )
    return module


@torch.no_grad()
def init_layer(module: nn.Module, dense: Tensor) -> float:
    """Set the weight of a layer as near to a trained weight as its structure allows; the bias stays.

    Args:
        module: a convolution, a linear map or a structured layer.
        dense: the trained weight (O, I / groups, K, K), or (O, I).

    Returns:
        The relative error ||W - dense|| / ||dense||.

    Raises:
        InputError: `module` is another layer.
        ValueError: the weight has another shape.
    """
    expected = tuple(dense_weight(module).shape)
    if tuple(dense.shape) != expected:
        raise ValueError(f"the weight must be {' x '.join(map(str, expected))}, but got {tuple(dense.shape)}")
    if not isinstance(module, Plain):
        return _structured(module).init_from_dense(dense)
    module.weight.copy_(dense)
    return relative_error(module.weight, dense.to(module.weight.device))


def merge(network: nn.Module, *, combined: bool = True) -> nn.Module:
    """Replace every structured layer of a network, in place, by plain layers.

    The outputs stay the same.

    Args:
        network: the network, or a structured layer.
        combined: make one K x K convolution of a depthwise and pointwise pair; else a depthwise and a 1 x 1
            convolution, which cost less.

    Returns:
        The network; if it is itself a structured layer, its replacement.
    """
    if isinstance(network, Structured):
        return _merged(network, combined)
    replacements: dict[nn.Module, nn.Module] = {}  # a layer under two names stays one layer
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` gives a shared layer once
            if isinstance(child, Structured) and not isinstance(parent, Structured):
                if child not in replacements:
                    replacements[child] = _merged(child, combined)
                setattr(parent, name, replacements[child])
    return network


def _merged(module: Structured, combined: bool) -> nn.Module:
    if isinstance(module, StructuredLinear) or (isinstance(module, KernelChain) and module.linear):
        return as_linear(module.dense_weight(), module.dense_bias()).train(module.training)
    if isinstance(module, KernelChain):
        return _as_plain(module, module.dense_weight(), module.bias, module.groups)
    if isinstance(module, StructuredMap):
        return _as_plain(module, module.dense_weight(), module.bias, module.groups)
    depthwise = module.depthwise
    if combined or tuple(depthwise.weight_shape[2:] if isinstance(depthwise, StructuredMap) else ()) == (1, 1):
        return _as_plain(depthwise, module.dense_weight(), module.dense_bias(), 1)
    first = _as_plain(depthwise, module.kernel(), depthwise.bias, depthwise.groups)
    return nn.Sequential(first, _as_plain(module.pointwise, module.pointwise.dense_weight(), module.pointwise.bias, 1))


def _as_plain(
    geometry: nn.Conv2d | StructuredMap | KernelChain, weight: Tensor, bias: Tensor | None, groups: int
) -> nn.Conv2d:
    """Make a convolution of this weight with the stride, padding, dilation and mode of `geometry`."""

    def pair(value: tuple[int, ...] | str) -> Pair | str:
        return value if isinstance(value, str) else (value[0], value[1])

    conv: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride=geometry.stride,
        padding=pair(geometry.padding), dilation=geometry.dilation, groups=groups, bias=bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv.train(geometry.training)
