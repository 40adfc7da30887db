"""Plans a network: runs it once on one image and lists its convolutions and linear maps with their areas.

A named network is built on the meta device, so that its weights take no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.counting_conventions import StudyExtras
from lowrank.compression.operation_counter import OperationCounter, pooling_cost
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.errors import InputError, UncountableError
from lowrank.layers import ConvShape, Pair, ProjectedAttention
from lowrank.networks import (
    DropPath,
    ImageShape,
    LearnedPositions,
    NetworkSettings,
    for_counting,
    is_own_code,
    make_network,
)

# Layers without multiplications of their own; their parameters are counted as they are.
_FREE = (
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU,
    nn.GELU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Identity, nn.Flatten,
    nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.ChannelShuffle, nn.ZeroPad2d,
    nn.Sequential, DropPath, ProjectedAttention, LearnedPositions,
)  # fmt: skip
# Those of torchvision, by name, so that it need not be imported; products of activations are counted as they run.
_FREE_OF_TORCHVISION = frozenset({
    "models.convnext.CNBlock", "models.maxvit.RelativePositionalMultiHeadAttention", "models.maxvit.SwapAxes",
    "models.maxvit.WindowDepartition", "models.maxvit.WindowPartition", "models.swin_transformer.PatchMergingV2",
    "models.vision_transformer.Encoder", "models.vision_transformer.VisionTransformer", "ops.misc.Permute",
    "ops.stochastic_depth.StochasticDepth",
})  # fmt: skip
# Modules that use the weights of the linear maps inside them directly: counted as a whole and not substituted.
_ATTENTION = (nn.MultiheadAttention,)
_ATTENTION_OF_TORCHVISION = frozenset({
    "models.swin_transformer.ShiftedWindowAttention", "models.swin_transformer.ShiftedWindowAttentionV2",
})  # fmt: skip
_RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_)
LINEAR = "a linear map"
ATTENTION = "attention, which uses its linear maps' weights by itself"


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
    network: nn.Module, image_shape: ImageShape, keep: Sequence[str] = (), name: str = "", *, linear: bool = False
) -> NetworkPlan:
    """Run a network once on a zero image and list its convolutions and linear maps.

    Args:
        network: any module whose layers have counting rules; it runs on the device of its parameters.
        image_shape: (C, H, W) of the image.
        keep: shell-style patterns of module names that are not substituted, besides the network's own.
        name: of the plan; the name of the network's class if empty.
        linear: substitute linear maps too.

    Returns:
        The plan.

    Raises:
        InputError: the network does not take such images.
        UncountableError: a layer has no counting rule, or a convolution or linear map does not run.
    """
    run = _Run(network, image_shape)
    rules = _Rules(
        (*getattr(network, "never_substituted", ()), *keep),
        ("*",) if linear else tuple(getattr(network, "linear_maps", ())),
        stem=next((name for name in run.areas if isinstance(network.get_submodule(name), nn.Conv2d)), None),
    )  # fmt: skip
    sites, attention, other = _classify_modules(network, run, rules)
    products = run.operations.mult_adds - sum(site.mult_adds for site in sites)
    if products < 0:
        raise UncountableError(f"{type(network).__name__} runs fewer products than its layers have; it has no rule")
    biases = sum(site.shape.bias_params * site.shape.out_area for site in sites if site.linear)
    return NetworkPlan(
        name or type(network).__name__, sites, other, products,
        StudyExtras(run.operations.relu_inputs, run.pooling, biases), attention, base=getattr(network, "base", "dense"),
    )  # fmt: skip


def _classify_modules(network: nn.Module, run: _Run, rules: _Rules) -> tuple[tuple[Site, ...], tuple[str, ...], int]:
    """List the sites, the names of attention modules, and the number of parameters outside of all sites."""
    sites: list[Site] = []
    attention: list[str] = []
    other = 0
    for name, module in network.named_modules():
        if any(name.startswith(f"{prefix}.") for prefix in attention):
            continue
        if isinstance(module, _ATTENTION) or _torchvision_name(module) in _ATTENTION_OF_TORCHVISION:
            attention.append(name)
            other += sum(parameter.numel() for parameter in module.parameters())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            if name not in run.areas:
                raise UncountableError(f"`{name}` never ran on the image; its mult-adds have no rule")
            sites.append(_site(name, module, run.areas[name], rules))
        else:
            other += _other_params(name, module)
    return tuple(sites), tuple(attention), other


@dataclass(frozen=True)
class _Rules:
    """What decides whether a site is substituted.

    Attributes:
        keep: patterns of module names that are not substituted.
        linear_maps: patterns of linear maps that are.
        stem: name of the first convolution that runs.
    """

    keep: tuple[str, ...]
    linear_maps: tuple[str, ...]
    stem: str | None

    def keep_reason(self, name: str, module: nn.Conv2d | nn.Linear) -> str:
        """Return why a module is never substituted; "" if it is."""
        matched = next((pattern for pattern in self.keep if fnmatchcase(name, pattern)), None)
        by_name = f"kept by name ({matched})" if matched else ""
        if isinstance(module, nn.Linear):
            is_named = any(fnmatchcase(name, pattern) for pattern in self.linear_maps)
            return by_name if is_named else LINEAR
        if module.groups > 1:
            return f"already grouped ({module.groups} groups)"
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r}"
        return "the stem" if name == self.stem else by_name


def _site(name: str, module: nn.Conv2d | nn.Linear, areas: Pair, rules: _Rules) -> Site:
    is_linear = isinstance(module, nn.Linear)
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        shape = ConvShape(module.in_features, module.out_features, bias=bias, in_area=areas[1], out_area=areas[1])
    else:
        shape = conv_shape(module, *areas)
    params = sum(parameter.numel() for parameter in module.parameters())
    return Site(name, shape, rules.keep_reason(name, module), params, module.weight.numel() * areas[1], is_linear)


def _other_params(name: str, module: nn.Module) -> int:
    params = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    is_leaf = next(module.children(), None) is None
    is_free = isinstance(module, _FREE) or _torchvision_name(module) in _FREE_OF_TORCHVISION
    if (params or is_leaf) and not is_free:
        raise UncountableError(f"`{name}` is a {type(module).__name__}, which has no counting rule")
    return params


def _torchvision_name(module: nn.Module) -> str:
    """Return the name of a module's class within torchvision; "" for other modules."""
    layer_class = type(module)
    package, _, submodule = layer_class.__module__.partition(".")
    return f"{submodule}.{layer_class.__qualname__}" if package == "torchvision" else ""


class _Run:
    """One forward pass of a zero image.

    Attributes:
        areas: input and output area of each convolution and linear map, in the order of their first run.
        pooling: the study's cost of all pooling modules.
        operations: the counter of operations.
    """

    def __init__(self, network: nn.Module, image_shape: ImageShape):
        parameter = next(network.parameters())
        if parameter.is_meta:
            try:
                self._run(network, torch.zeros(1, *image_shape, dtype=parameter.dtype))
                return
            except RuntimeError:
                # An operation writes to a weight, or the image does not fit: torch says why on the meta device.
                pass
        try:
            self._run(network, torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
        except RuntimeError as error:
            raise InputError(f"the network cannot take images of {image_shape}: {error}".splitlines()[0]) from error

    def _run(self, network: nn.Module, image: Tensor) -> None:
        self.areas: dict[str, Pair] = {}
        self.pooling = 0
        self.operations = OperationCounter()
        handles = [
            module.register_forward_hook(self._watch(name))
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AvgPool2d)
        ]
        was_training = network.training
        try:
            with torch.no_grad(), unfused_attention(), self.operations:
                network.eval()(image)
        finally:
            network.train(was_training)
            for handle in handles:
                handle.remove()

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not isinstance(module, nn.Conv2d | nn.Linear):
                self.pooling += pooling_cost(module, output)
                return
            before = self.areas.get(name, (0, 0))  # a shared layer costs as often as it runs
            self.areas[name] = before[0] + _area(module, inputs[0]), before[1] + _area(module, output)

        return hook


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Run attention as plain products: torch's counter does not know all of its fused forms."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _area(module: nn.Module, tensor: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return tensor.numel() // tensor.shape[-1]
    return tensor.shape[-2] * tensor.shape[-1]


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
        InputError: there is no such network, or it does not take such images.
        UncountableError: a layer has no counting rule.
    """
    network = network_to_count(settings, image_shape, classes)
    return trace_plan(network, image_shape, name=settings.name, linear=settings.linear)


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
            with torch.device("meta"), _SkipInitialisation():
                return make_network(settings, image_shape, classes)
        except NotImplementedError:  # torchvision's RegNets read values of tensors while they are built
            return make_network(settings, image_shape, classes).to("meta")


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
