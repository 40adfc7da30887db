"""Starts a whole substituted network from a trained one: structured layers by the nearest weight, all else copied.

Letters: I in-channels, O out-channels, K kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.compression.merging import Structured, dense_bias, dense_weight, init_layer
from lowrank.errors import InputError
from lowrank.layers.base_layer import SeparableConv2d, StructuredMap
from lowrank.layers.linear import StructuredLinear
from lowrank.layers.low_rank.whole_kernel import KernelChain


@dataclass(frozen=True)
class LayerInit:
    """One structured layer: its name, and ||W - dense|| / ||dense|| of the weight that it started with."""

    name: str
    error: float


@dataclass(frozen=True)
class InitReport:
    """What `init_from_network` did: each structured layer with its error, and the names of the tensors copied."""

    layers: tuple[LayerInit, ...]
    copied: tuple[str, ...]

    @property
    def largest_error(self) -> float:
        """The worst layer's relative error; 0 without structured layers."""
        return max((layer.error for layer in self.layers), default=0.0)

    def __str__(self) -> str:
        head = f"started {len(self.layers)} layers from trained weights, copied {len(self.copied)} tensors"
        return "\n".join([head, *(f"{layer.name}: relative error {layer.error:.3g}" for layer in self.layers)])


@torch.no_grad()
def init_from_network(student: nn.Module, teacher: nn.Module) -> InitReport:
    """Set, in place, everything in the state of `student` from the trained `teacher`.

    A structured layer starts as near as its structure gets to the dense weight of the teacher's module of the same
    name, which may itself be structured, and takes over its bias; every other tensor is copied by its name. Raises
    InputError, before anything is changed, when a module is missing or is another layer than the one replaced.
    """
    layers = dict(_structured_layers(student))
    sources = {name: _source(teacher, name, layer) for name, layer in layers.items()}
    copies = _copies(student, teacher, tuple(layers))
    started: dict[int, float] = {}  # a layer under two names starts once
    for name, layer in layers.items():
        if id(layer) not in started:
            started[id(layer)] = init_layer(layer, dense_weight(sources[name]).detach())
            _set_bias(layer, dense_bias(sources[name]))
    for mine, theirs in copies.values():
        mine.copy_(theirs)
    report = tuple(LayerInit(name, started[id(layer)]) for name, layer in layers.items())
    return InitReport(report, tuple(copies))


def _structured_layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, Structured]]:
    """Each outermost structured layer, under every name that it has."""
    if isinstance(network, Structured):
        yield prefix, network
        return
    for name, child in network._modules.items():  # `named_children` gives a shared layer once
        if child is not None:
            yield from _structured_layers(child, f"{prefix}.{name}" if prefix else name)


def _source(teacher: nn.Module, name: str, layer: Structured) -> nn.Module:
    """The teacher's module that `layer` stands for; raises InputError when it is none of the right kind and shape."""
    try:
        found = teacher.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"the trained network has no module `{name}`, which the student replaced") from error
    try:
        theirs, bias = tuple(dense_weight(found).shape), dense_bias(found)
    except InputError as error:
        raise InputError(f"`{name}` of the trained network: {error}") from error
    ours = tuple(dense_weight(layer).shape)
    if theirs != ours:
        raise InputError(f"`{name}`: the student's weight is {_shown(ours)}, the trained network's is {_shown(theirs)}")
    if _geometry(found) != _geometry(layer):
        raise InputError(
            f"`{name}`: the student moves by stride and padding {_geometry(layer)}, the trained network by "
            f"{_geometry(found)}"
        )
    if bias is not None and _last(layer).bias is None:
        raise InputError(f"`{name}`: the trained network has a bias there, the student has none")
    return found


def _geometry(module: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...] | str] | None:
    """Stride and padding; None for a linear map."""
    if isinstance(module, SeparableConv2d):
        return _geometry(module.depthwise)
    if isinstance(module, nn.Conv2d | StructuredMap | KernelChain) and not getattr(module, "linear", False):
        return tuple(module.stride), module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return None


def _last(layer: Structured) -> StructuredMap | KernelChain:
    """The map that carries the layer's bias."""
    if isinstance(layer, StructuredLinear):
        return _last(layer.pointwise)
    return layer.pointwise if isinstance(layer, SeparableConv2d) else layer


def _set_bias(layer: Structured, bias: Tensor | None) -> None:
    """Give the layer this bias in all: on its last map; a depthwise part's own, which would add to it, is zero."""
    for part in layer.modules():
        if isinstance(part, StructuredMap) and part.bias is not None:
            part.bias.zero_()
    own = _last(layer).bias
    if bias is not None and own is not None:
        own.copy_(bias)


def _copies(student: nn.Module, teacher: nn.Module, structured: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of tensors (the student's, the teacher's) outside the structured layers, by name."""
    theirs = teacher.state_dict()
    inside = tuple(f"{name}." for name in structured)
    found = {}
    for name, mine in student.state_dict().items():
        if "" in structured or name.startswith(inside):
            continue
        if name not in theirs:
            raise InputError(f"the trained network has no `{name}`, which the student keeps as it is")
        if theirs[name].shape != mine.shape:
            shapes = _shown(mine.shape), _shown(theirs[name].shape)
            raise InputError(f"`{name}`: the student's is {shapes[0]}, the trained network's is {shapes[1]}")
        found[name] = mine, theirs[name]
    return found


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
