"""A network as the list of its convolutions and linear maps with their areas, for counting, budgets and substitution.

The network is built once on the meta device (no memory, no arithmetic) and run on one image of the right shape;
after that, counting any configuration is arithmetic on a handful of distinct shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import InputError, UncountableError
from lowrank.layers.base import ConvShape, Method, Pair
from lowrank.networks import NetworkSettings, make_network

# Layers without mult-adds under the standard convention; their parameters are counted as they are.
_FREE = (
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish,
    nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.ChannelShuffle, nn.ZeroPad2d, nn.Sequential,
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One convolution or linear map of a network; `kept` says why it is never substituted ("" when it may be)."""

    name: str
    shape: ConvShape
    kept: str
    params: int
    mult_adds: int


@dataclass(frozen=True)
class NetworkPlan:
    """Every site of a network, and the parameters that lie outside all sites (norms)."""

    name: str
    sites: tuple[Site, ...]
    other_params: int

    @cached_property
    def substituted(self) -> tuple[Site, ...]:
        """The sites that a method replaces."""
        return tuple(site for site in self.sites if not site.kept)

    @cached_property
    def shapes(self) -> tuple[tuple[ConvShape, int], ...]:
        """Distinct shapes among the substituted sites, and how often each occurs."""
        return tuple(Counter(site.shape for site in self.substituted).items())

    @cached_property
    def fixed_params(self) -> int:
        """Parameters that no method touches."""
        return self.other_params + sum(site.params for site in self.sites if site.kept)

    @cached_property
    def fixed_mult_adds(self) -> int:
        """Mult-adds, for one image, that no method touches."""
        return sum(site.mult_adds for site in self.sites if site.kept)

    def params(self, method: Method) -> int:
        """Exact parameters of the network with `method` in every substituted site."""
        return self.fixed_params + sum(method.params(shape) * times for shape, times in self.shapes)

    def mult_adds(self, method: Method) -> int:
        """Mult-adds, for one image, of the network with `method` in every substituted site."""
        return self.fixed_mult_adds + sum(method.mult_adds(shape) * times for shape, times in self.shapes)

    def infeasible(self, method: Method) -> str | None:
        """The first reason why `method` cannot stand in some site; None when it can in all."""
        for shape, _ in self.shapes:
            reason = method.infeasible(shape)
            if reason is not None:
                return f"{method.name}: {reason}"
        return None

    def signature(self, method: Method) -> tuple[Any, ...]:
        """What is really built: equal signatures mean equal networks."""
        return tuple((shape, method.signature(shape)) for shape, _ in self.shapes)


def conv_shape(conv: nn.Conv2d, in_area: int, out_area: int) -> ConvShape:
    """The ConvShape of a convolution seen with these areas (height * width)."""
    padding: Pair | str = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
    return ConvShape(
        conv.in_channels, conv.out_channels, _pair(conv.kernel_size), _pair(conv.stride), padding,
        _pair(conv.dilation), conv.bias is not None, in_area, out_area,
    )  # fmt: skip


def _pair(value: Sequence[int]) -> Pair:
    return int(value[0]), int(value[1])


def trace_plan(
    network: nn.Module, image_shape: tuple[int, int, int], kept: Sequence[str] = (), name: str = ""
) -> NetworkPlan:
    """Run `network` once on a zero image (on the device of its parameters) and list its sites.

    `kept` adds shell-style patterns of module names to the network's own. Raises UncountableError for a module with
    parameters, or a leaf, that has no rule, and for a convolution or linear map that never runs.
    """
    patterns = (*getattr(network, "kept", ()), *kept)
    areas = _areas(network, image_shape)
    first = next((name for name in areas if isinstance(network.get_submodule(name), nn.Conv2d)), None)
    sites, other = [], 0
    for module_name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module_name not in areas:
                raise UncountableError(f"`{module_name}` never ran on the image; its mult-adds have no rule")
            sites.append(_site(module_name, module, areas[module_name], patterns, module_name == first))
        else:
            other += _other_params(module_name, module)
    return NetworkPlan(name or type(network).__name__, tuple(sites), other)


def _site(name: str, module: nn.Module, areas: Pair, patterns: Sequence[str], is_first: bool) -> Site:
    params = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, nn.Linear):
        shape = ConvShape(module.in_features, module.out_features, bias=module.bias is not None)
        return Site(name, shape, "a linear map", params, module.in_features * module.out_features * areas[1])
    assert isinstance(module, nn.Conv2d)
    shape = conv_shape(module, *areas)
    kept = _why_kept(name, module, patterns, is_first)
    return Site(name, shape, kept, params, module.weight.numel() * areas[1])


def _why_kept(name: str, conv: nn.Conv2d, patterns: Sequence[str], is_first: bool) -> str:
    if conv.groups > 1:
        return f"already grouped ({conv.groups} groups)"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode!r}"
    if is_first:
        return "the stem"
    matched = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
    return f"kept by name ({matched})" if matched else ""


def _other_params(name: str, module: nn.Module) -> int:
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    is_leaf = next(module.children(), None) is None
    if (own or is_leaf) and not isinstance(module, _FREE):
        raise UncountableError(f"`{name}` is a {type(module).__name__}, which has no counting rule")
    return own


def _areas(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Pair]:
    """Input and output area of every convolution and linear map, summed over its runs, in the order of their first."""
    areas: dict[str, Pair] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before = areas.get(name, (0, 0))  # a shared layer costs as often as it runs
            areas[name] = before[0] + _area(module, inputs[0]), before[1] + _area(module, output)

        return hook  # fmt: skip

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    like = next(network.parameters())
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype))
    except RuntimeError as error:
        raise InputError(f"the network cannot take images of {image_shape}: {error}".splitlines()[0]) from error
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return areas


def _area(module: nn.Module, tensor: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return tensor.numel() // tensor.shape[-1]
    return tensor.shape[-2] * tensor.shape[-1]


@lru_cache(maxsize=256)
def network_plan(settings: NetworkSettings, image_shape: tuple[int, int, int], classes: int) -> NetworkPlan:
    """The plan of a named network, made once a process; raises InputError for an unknown name."""
    with torch.device("meta"):
        network = make_network(settings, image_shape, classes)
    return trace_plan(network, image_shape, name=settings.name)
