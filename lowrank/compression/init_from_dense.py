"""Starts a substituted network from a trained one: structured layers at the nearest weight, all else copied.

Posteriors of variational layers begin with the trained weights as their means.

Letters: I in-channels, O out-channels, K kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.compression.merging import Structured, dense_bias, dense_weight, init_layer
from lowrank.errors import InputError
from lowrank.layers import (
    KernelChain,
    SeparableConv2d,
    StructuredLinear,
    StructuredMap,
    VariationalConv2d,
    VariationalLayer,
    variational_layers,
)
from lowrank.utils import format_counted


@dataclass(frozen=True)
class LayerInit:
    """The start of one structured layer.

    Attributes:
        name: of the layer.
        error: ||W - dense|| / ||dense|| of its weight W.
    """

    name: str
    error: float


@dataclass(frozen=True)
class InitReport:
    """What `init_from_network` did.

    Attributes:
        layers: each structured layer with its error.
        copied: names of the tensors that were copied.
    """

    layers: tuple[LayerInit, ...]
    copied: tuple[str, ...]

    @property
    def largest_error(self) -> float:
        """The largest relative error of a layer; 0 without structured layers."""
        return max((layer.error for layer in self.layers), default=0.0)

    def __str__(self) -> str:
        layers, tensors = format_counted(len(self.layers), "layer"), format_counted(len(self.copied), "tensor")
        head = f"started {layers} from trained weights, copied {tensors}"
        return "\n".join([head, *(f"{layer.name}: relative error {layer.error:.3g}" for layer in self.layers)])


@torch.no_grad()
def init_from_network(student: nn.Module, teacher: nn.Module) -> InitReport:
    """Set the whole state of a student, in place, from a trained network.

    A structured layer starts at the nearest weight, within its structure, to the dense weight of the teacher's module
    of the same name, and takes over its bias. The posterior of a variational layer begins with both as its means. Every
    other tensor is copied by its name.

    Args:
        student: the substituted network.
        teacher: the trained one; its layers may be structured too.

    Returns:
        The error of each structured layer, and what was copied.

    Raises:
        InputError: the teacher lacks a module or has another layer in its place; nothing was changed then.
    """
    layers = dict(structured_layers(student))
    sources = {name: _source(teacher, name, layer) for name, layer in layers.items()}
    posteriors = {name: (layer, _source(teacher, name, layer)) for name, layer in variational_layers(student)}
    copies = _copies(student, teacher, (*layers, *posteriors))
    started: dict[int, float] = {}  # a layer under two names starts once
    for name, layer in layers.items():
        if id(layer) not in started:
            started[id(layer)] = init_layer(layer, dense_weight(sources[name]).detach())
            _set_bias(layer, dense_bias(sources[name]))
    for posterior, source in posteriors.values():
        posterior.begin_at(dense_weight(source), dense_bias(source))
    for target, value in copies.values():
        target.copy_(value)
    report = tuple(LayerInit(name, started[id(layer)]) for name, layer in layers.items())
    return InitReport(report, tuple(copies))


def structured_layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, Structured]]:
    """Walk through a network's outermost structured layers, a shared one under every name that it has.

    Args:
        network: any module.
        prefix: put before the names.

    Yields:
        The name of each layer and the layer.
    """
    if isinstance(network, Structured):
        yield prefix, network
        return
    for name, child in network._modules.items():  # `named_children` gives a shared layer once
        if child is not None:
            yield from structured_layers(child, f"{prefix}.{name}" if prefix else name)


def _source(teacher: nn.Module, name: str, layer: Structured | VariationalLayer) -> nn.Module:
    """Return the teacher's module that `layer` replaces; raises InputError if its kind or shape differs."""
    try:
        module = teacher.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"the trained network has no module `{name}`, which the student replaced") from error
    try:
        shape, bias = tuple(dense_weight(module).shape), dense_bias(module)
    except InputError as error:
        raise InputError(f"`{name}` of the trained network: {error}") from error
    expected = tuple((layer.weight if isinstance(layer, VariationalLayer) else dense_weight(layer)).shape)
    if shape != expected:
        shapes = _format_shape(expected), _format_shape(shape)
        raise InputError(f"`{name}`: the student's weight is {shapes[0]}, the trained network's is {shapes[1]}")
    _check_geometry(name, layer, module)
    if bias is not None and _biased_map(layer).bias is None:
        raise InputError(f"`{name}`: the trained network has a bias there, the student has none")
    return module


def _geometry(module: nn.Module) -> dict[str, object] | None:
    """Return what decides, besides its weight, how a layer moves over an image; None for a linear map."""
    if isinstance(module, SeparableConv2d):
        return {**(_geometry(module.depthwise) or {}), "groups": 1}
    if isinstance(module, nn.modules.conv._ConvNd | StructuredMap | KernelChain | VariationalConv2d) and not getattr(
        module, "linear", False
    ):
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        return {
            "stride": tuple(module.stride), "padding": padding, "dilation": tuple(module.dilation),
            "groups": module.groups, "padding mode": getattr(module, "padding_mode", "zeros"),
        }  # fmt: skip
    return None


def _check_geometry(name: str, layer: nn.Module, source: nn.Module) -> None:
    """Raise InputError where a student's layer moves over an image otherwise than the trained one."""
    geometry, expected = _geometry(layer), _geometry(source)
    if geometry is None or expected is None:
        if geometry != expected:
            raise InputError(f"`{name}` is a linear map in one of both networks and a convolution in the other")
        return
    different = [key for key in geometry if geometry[key] != expected[key]]
    if different:
        shown = (", ".join(f"{key} {values[key]}" for key in different) for values in (geometry, expected))
        raise InputError("`{}`: the student's layer has {}, the trained network's has {}".format(name, *shown))


def _biased_map(layer: Structured | VariationalLayer) -> StructuredMap | KernelChain | VariationalLayer:
    """Return the map that carries the layer's bias."""
    if isinstance(layer, VariationalLayer):
        return layer
    if isinstance(layer, StructuredLinear):
        return _biased_map(layer.pointwise)
    return layer.pointwise if isinstance(layer, SeparableConv2d) else layer


def _set_bias(layer: Structured, bias: Tensor | None) -> None:
    """Set the bias of the whole layer: on its last map, and zero on a depthwise part, which would add to it."""
    for part in layer.modules():
        if isinstance(part, StructuredMap) and part.bias is not None:
            part.bias.zero_()
    parameter = _biased_map(layer).bias
    if bias is not None and parameter is not None:
        parameter.copy_(bias)


def _copies(student: nn.Module, teacher: nn.Module, structured: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the tensors of student and teacher outside the structured layers, by name."""
    sources = teacher.state_dict()
    prefixes = tuple(f"{name}." for name in structured)
    _check_copied_convolutions(student, teacher, structured)
    pairs = {}
    for name, target in student.state_dict().items():
        if "" in structured or name.startswith(prefixes):
            continue
        if name not in sources:
            raise InputError(f"the trained network has no `{name}`, which the student keeps as it is")
        if sources[name].shape != target.shape:
            shapes = _format_shape(target.shape), _format_shape(sources[name].shape)
            raise InputError(f"`{name}`: the student's is {shapes[0]}, the trained network's is {shapes[1]}")
        pairs[name] = target, sources[name]
    return pairs


def _check_copied_convolutions(student: nn.Module, teacher: nn.Module, structured: tuple[str, ...]) -> None:
    """Raise InputError where a convolution that is copied moves over the image otherwise than the student's."""
    sources = dict(teacher.named_modules(remove_duplicate=False))
    for name, module in student.named_modules(remove_duplicate=False):
        inside = "" in structured or name in structured or name.startswith(tuple(f"{one}." for one in structured))
        if inside or not isinstance(module, nn.modules.conv._ConvNd) or name not in sources:
            continue
        _check_geometry(name, module, sources[name])


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
