"""Plans a network: runs it once on one image and lists its convolutions and linear maps with their areas.

A named network is built on the meta device, so that its weights take no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.counting_conventions import StudyExtras
from lowrank.compression.inspection.network_pass import NetworkPass, check_logits
from lowrank.compression.inspection.plain_layers import GIVES_CLASSES, ModuleUses, check_patterns, reason_by_name
from lowrank.compression.plan import LINEAR, NetworkPlan, Site
from lowrank.errors import InputError, UncountableError
from lowrank.layers import ConvShape, Dense, Pair
from lowrank.networks import ImageShape, NetworkSettings, for_counting, is_own_code, make_network

# Modules that use the weights of the linear maps inside them directly: counted as a whole and not substituted.
_ATTENTION = (nn.MultiheadAttention,)
_ATTENTION_OF_TORCHVISION = frozenset({
    "models.swin_transformer.ShiftedWindowAttention", "models.swin_transformer.ShiftedWindowAttentionV2",
})  # fmt: skip
_OTHER_MAPS = (nn.modules.conv._ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
_RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_)
Frozen = Literal["keep", "replace"]
FROZEN = "frozen (its parameters have requires_grad False)"
UNUSED = "it does not run by itself in evaluation"


def conv_shape(conv: nn.Conv2d, in_area: int, out_area: int) -> ConvShape:
    """Return the ConvShape of a convolution that runs with these areas (height * width)."""
    padding: Pair | str = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
    return ConvShape(
        conv.in_channels, conv.out_channels, _pair(conv.kernel_size), _pair(conv.stride), padding,
        _pair(conv.dilation), conv.bias is not None, in_area, out_area,
    )  # fmt: skip


def _pair(value: Sequence[int]) -> Pair:
    return int(value[0]), int(value[1])


def trace_plan(
    network: nn.Module, image_shape: ImageShape, keep: Sequence[str] = (), name: str = "", *, linear: bool = False,
    frozen: Frozen = "keep", classes: int | None = None, everything: bool = False, only: Sequence[str] | None = None,
) -> NetworkPlan:  # fmt: skip
    """Run a network once on a zero image and list its convolutions and linear maps.

    What the network multiplies outside of them is counted as it runs, and parameters outside of them as they are.

    Args:
        network: any module; it runs on the device of its parameters. Each module keeps its mode.
        image_shape: (C, H, W) of the image.
        keep: shell-style patterns of module names that are not substituted, besides the network's own.
        name: of the plan; the name of the network's class if empty.
        linear: substitute linear maps too.
        frozen: whether layers whose parameters have `requires_grad` False are kept or substituted.
        classes: number of classes that the outputs must fit; None for a network with any outputs.
        everything: substitute all layers but the one that gives the classes: also the stem, linear maps, and layers
            that the network itself excludes.
        only: patterns of the modules that alone are substituted; None for all.

    Returns:
        The plan. Each site that is not substituted has the reason.

    Raises:
        InputError: the network does not take such images, has no parameters, its outputs are no logits of so many
            classes, or a pattern of `keep` or `only` matches no layer.
        UncountableError: an operation has no counting rule.
    """
    run = NetworkPass(network, image_shape)
    if classes is not None:
        check_logits(run.output, classes, type(network).__name__)
    stem = next((name for name in run.areas if isinstance(network.get_submodule(name), nn.Conv2d)), None)
    rules = _Rules(
        tuple(keep) if everything else (*getattr(network, "never_substituted", ()), *keep),
        ("*",) if linear or everything else tuple(getattr(network, "linear_maps", ())),
        stem=None if everything else stem, frozen=frozen, uses=ModuleUses(network),
        only=None if only is None else tuple(only),
        last=next(reversed(run.areas), None) if everything else None,
    )  # fmt: skip
    check_patterns((*keep, *(only or ())), network)
    sites, attention, others = _classify_modules(network, run, rules)
    products = run.operations.mult_adds - sum(site.mult_adds for site in sites)
    if products < 0:
        raise UncountableError(f"{type(network).__name__} runs fewer products than its layers have; it has no rule")
    as_convolutions = tuple(getattr(network, "linear_maps", ()))  # 1 x 1 convolutions where they were published
    biases = sum(
        site.shape.bias_params * site.shape.out_area for site in sites
        if site.linear and not any(fnmatchcase(site.name, pattern) for pattern in as_convolutions)
    )  # fmt: skip
    other_params = sum(value.numel() for value in network.parameters()) - sum(site.params for site in sites)
    return NetworkPlan(
        name or type(network).__name__, sites, other_params, products,
        StudyExtras(run.operations.relu_inputs, run.pooling, biases), attention, others,
        base=getattr(network, "base", "dense"),
    )  # fmt: skip


def _classify_modules(
    network: nn.Module, run: NetworkPass, rules: _Rules
) -> tuple[tuple[Site, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """List the sites, the names of attention modules, and other modules with products, each with the reason."""
    sites: list[Site] = []
    attention: list[str] = []
    others: list[tuple[str, str]] = []
    counted: set[int] = set()  # parameters, so that shared ones are counted once
    for name, module in network.named_modules():
        if any(name.startswith(f"{prefix}.") for prefix in attention):
            continue
        if isinstance(module, _ATTENTION) or _torchvision_name(module) in _ATTENTION_OF_TORCHVISION:
            attention.append(name)
            counted.update(id(parameter) for parameter in module.parameters())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            sites.append(_site(name, module, run, rules, counted))
        elif isinstance(module, _OTHER_MAPS):
            others.append((name, f"a {type(module).__name__}, which no method replaces"))
    return tuple(sites), tuple(attention), tuple(others)


@dataclass(frozen=True)
class _Rules:
    """What decides whether a site is substituted.

    Attributes:
        keep: patterns of module names that are not substituted.
        linear_maps: patterns of linear maps that are.
        stem: name of the first convolution that runs; None where it is substituted like others.
        frozen: whether frozen layers are kept.
        uses: where modules and parameters are used besides their own place.
        last: name of the layer that gives the classes; None where another rule keeps it.
        only: patterns of the modules that alone are; None for all.
    """

    keep: tuple[str, ...]
    linear_maps: tuple[str, ...]
    stem: str | None
    frozen: Frozen
    uses: ModuleUses
    last: str | None = None
    only: tuple[str, ...] | None = None

    def keep_reason(self, name: str, module: nn.Conv2d | nn.Linear) -> str:
        """Return why a module is never substituted; "" if it is."""
        reason = self.uses.reason_not_plain(module)
        if reason:
            return reason
        if self.frozen == "keep" and any(not value.requires_grad for value in _parameters(module)):
            return FROZEN
        if name == self.last:
            return GIVES_CLASSES
        by_name = reason_by_name(name, self.keep, self.only)
        if isinstance(module, nn.Linear):
            is_named = any(fnmatchcase(name, pattern) for pattern in self.linear_maps)
            return by_name if is_named else LINEAR
        if module.groups > 1:
            return f"already grouped ({module.groups} groups)"
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r}"
        return "the stem" if name == self.stem else by_name


def _site(name: str, module: nn.Conv2d | nn.Linear, run: NetworkPass, rules: _Rules, counted: set[int]) -> Site:
    """Describe a layer; parameters that were not counted before are added to `counted`."""
    is_linear = isinstance(module, nn.Linear)
    areas = run.areas.get(name, (0, 0))
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        shape = ConvShape(module.in_features, module.out_features, bias=bias, in_area=areas[1], out_area=areas[1])
    else:
        shape = conv_shape(module, *areas)
    new = {id(value): value.numel() for value in _parameters(module) if id(value) not in counted}
    counted.update(new)
    reason = rules.keep_reason(name, module) if name in run.areas else UNUSED
    mult_adds, plain = run.mult_adds.get(name, 0), Dense().mult_adds(shape)
    if not reason and mult_adds != plain:
        reason = f"it runs {mult_adds:,} mult-adds, where a plain layer takes {plain:,}"
    return Site(name, shape, reason, sum(new.values()), mult_adds, is_linear)


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield a layer's parameters and those that they are computed from; modules inside it have their own."""
    yield from module.parameters(recurse=False)
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.Module):
        yield from parametrizations.parameters()


def _torchvision_name(module: nn.Module) -> str:
    """Return the name of a module's class within torchvision; "" for other modules."""
    layer_class = type(module)
    package, _, submodule = layer_class.__module__.partition(".")
    return f"{submodule}.{layer_class.__qualname__}" if package == "torchvision" else ""


@lru_cache(maxsize=256)
def network_plan(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> NetworkPlan:
    """Plan a named network; each process plans a network once.

    Args:
        settings: the network; trained weights are not loaded, and an auxiliary head is not counted.
        image_shape: (C, H, W) of its images.
        classes: number of classes.

    Returns:
        The plan under the `standard` convention.

    Raises:
        InputError: there is no such network, it does not take such images, or a pattern matches none of its layers.
        UncountableError: a layer has no counting rule.
    """
    network = network_to_count(settings, image_shape, classes)
    return trace_plan(
        network, image_shape, settings.keep, name=settings.name, linear=settings.linear, frozen=settings.frozen,
        classes=classes, everything=settings.substitute_all, only=settings.only,
    )  # fmt: skip


def plan_sized_network(
    settings: NetworkSettings,
    method: Mapping[str, Any],
    image_shape: ImageShape,
    classes: int,
    *,
    allocation: Mapping[str, Any] | None = None,
) -> tuple[NetworkPlan, SizedMethod]:
    """Plan a named network and the method in its sites, from plain settings.

    Args:
        settings: the dense network.
        method: settings of the method, as `make_method` takes them.
        image_shape: (C, H, W) of its images.
        classes: number of classes.
        allocation: a method for each group of layers, as `NetworkPlan.sized` takes it; None for one method everywhere.

    Returns:
        The network's sites, and the method or allocation that stands in them.

    Raises:
        InputError: the settings are wrong.
        UncountableError: a layer of the network has no counting rule.
    """
    plan = network_plan(settings, image_shape, classes)
    return plan, plan.sized(method, allocation)


def network_to_count(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> nn.Module:
    """Build a network as it is counted: without trained weights and auxiliary head.

    Args:
        settings: the network.
        image_shape: (C, H, W) of its images.
        classes: number of classes.

    Returns:
        The network on the meta device. A network from the user's code is on the CPU, because it may compute with
        values while it is built.

    Raises:
        InputError: there is no such network, or it does not take such images.
    """
    settings = for_counting(settings)
    with torch.random.fork_rng(devices=[]):
        if is_own_code(settings.name):
            return make_network(settings, image_shape, classes)
        try:
            with meta_weights():
                return make_network(settings, image_shape, classes)
        except (NotImplementedError, InputError):  # some builders read values of tensors, as torchvision's RegNets do
            return make_network(settings, image_shape, classes).to("meta")


@contextmanager
def meta_weights() -> Iterator[None]:
    """Make new modules on the meta device: their weights have shapes, but no values and no memory."""
    with torch.device("meta"), _SkipInitialisation():
        yield


class _SkipInitialisation(TorchFunctionMode):
    """Leaves the values of new parameters alone: on the meta device there are none.

    Torch draws random numbers for a meta tensor in Python, and imports its compiler for that, which takes longer than
    `import torch` itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, unless it fills a tensor with random numbers."""
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
