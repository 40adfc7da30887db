"""Replaces the eligible convolutions and linear maps of any `nn.Module` by structured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from lowrank.compression.allocation import SizedMethod
from lowrank.compression.inspection.builder_weights import (
    BuilderWeights,
    find_builder_weights,
    keeps_own_weights,
    redraw,
)
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.compression.trace import Frozen, plan_sized_network, trace_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import ConvShape, Dense, KernelChain, Method, StructuredMap, WholeKernelMethod, build_linear
from lowrank.networks import ImageShape, NetworkSettings, make_network, without_weights
from lowrank.utils import format_counted

AUXILIARY = "auxiliary"  # name of a head that only training uses; it is never counted


@dataclass(frozen=True)
class SubstitutionReport:
    """What `substitute` did.

    Attributes:
        changed: names of the modules that were replaced.
        unchanged: names of the other convolutions and linear maps, each with the reason.
        params: parameters of the network now.
        dense_params: parameters of the network before.
        shapes: of each replaced module, in words: kernel, channels, parameters before and now.
    """

    changed: tuple[str, ...]
    unchanged: tuple[tuple[str, str], ...]
    params: int
    dense_params: int
    shapes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"substituted {format_counted(len(self.changed), 'layer')}, {self.params:,} parameters in all",
            f"before: {self.dense_params:,} parameters",
        ]
        lines += [f"changed {name}: {shape}" for name, shape in zip(self.changed, self.shapes, strict=True)]
        return "\n".join([*lines, *(f"unchanged {name}: {reason}" for name, reason in self.unchanged)])


def substitute(
    network: nn.Module, method: Method, image_shape: ImageShape, keep: Sequence[str] = (), *, linear: bool = False,
    frozen: Frozen = "keep", only: Sequence[str] | None = None,
) -> SubstitutionReport:  # fmt: skip
    """Replace every eligible convolution, in place, by the method's layer.

    Unchanged stay: the first convolution, grouped convolutions, linear maps (unless `linear` or the network itself asks
    for them), attention, modules whose names match `keep` or the network's own patterns, frozen layers (unless `frozen`
    says otherwise), and every module that is more than a plain layer: of a class with a forward of its own, with hooks,
    with other parameters than weight and bias, or with parameters that another module has too. New layers have initial
    weights, and the device, the dtype and the mode of the layers that they replace. Where the method leaves a layer
    dense, the layer stays with its weights.

    Args:
        network: any module.
        method: what to build.
        image_shape: (C, H, W) of its images.
        keep: shell-style patterns of module names that stay, besides the network's own attribute `kept`.
        linear: replace linear maps too.
        frozen: "keep" layers whose parameters have `requires_grad` False, or "replace" them by frozen ones.
        only: patterns of the modules that alone are replaced; None for all.

    Returns:
        What was replaced, what was not, and why.

    Raises:
        InfeasibleError: the method does not fit some layer; the network is unchanged.
        InputError: the network does not take such images, or a pattern matches none of its layers.
        UncountableError: an operation has no counting rule; the network is unchanged.
    """
    plan = trace_plan(network, image_shape, keep, linear=linear, frozen=frozen, only=only)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    replace_sites(network, plan, method, keep_dense=True)
    return _report(plan, method)


def _report(plan: NetworkPlan, method: Method) -> SubstitutionReport:
    return SubstitutionReport(
        tuple(site.name for site in plan.substituted), plan.kept, plan.params(method), plan.params(Dense()),
        tuple(_describe(site, method) for site in plan.substituted),
    )  # fmt: skip


def _describe(site: Site, method: Method) -> str:
    shape = site.shape
    kind = "linear" if site.linear else "{} x {}".format(*shape.kernel)
    counts = f"{site.params:,} -> {method.params(shape):,} parameters"
    return f"{kind}, {shape.in_channels} -> {shape.out_channels} channels, {counts}"


def replace_sites(network: nn.Module, plan: NetworkPlan, sized: SizedMethod, *, keep_dense: bool) -> None:
    """Replace the layers at the substituted sites of a network, in place, under every name that a layer has.

    Args:
        network: the dense network.
        plan: its sites.
        sized: the method, or the allocation, that builds the new layers.
        keep_dense: leave a layer with its weights where the method leaves it dense, instead of drawing it anew.
    """
    replacements = {}
    for site, method in plan.methods_by_site(sized):
        if not (keep_dense and _leaves_dense(method, site.shape)):
            replacements[id(network.get_submodule(site.name))] = _build_layer(network, site, method)
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` gives a shared layer once
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])


def _leaves_dense(method: Method, shape: ConvShape) -> bool:
    return isinstance(method, Dense) or (isinstance(method, WholeKernelMethod) and method.stays_dense(shape))


def _build_layer(network: nn.Module, site: Site, method: Method) -> nn.Module:
    dense = network.get_submodule(site.name)
    layer = build_linear(method, site.shape) if site.linear else method.build(site.shape)
    weight, bias = dense.weight, dense.bias
    assert isinstance(weight, torch.Tensor)
    for name, parameter in layer.named_parameters():
        source = bias if name.rpartition(".")[2] == "bias" and isinstance(bias, torch.Tensor) else weight
        parameter.requires_grad_(source.requires_grad)
    return layer.to(weight.device, weight.dtype).train(dense.training)


def build_student(
    settings: NetworkSettings, plan: NetworkPlan, sized: SizedMethod, image_shape: ImageShape, classes: int, seed: int
) -> nn.Module:
    """Build a named network with a method in its sites.

    A dense network has the weights that its builder returns, trained or not. With any other method all weights are
    drawn anew, those outside of the sites too, so that the seed alone determines them; frozen layers that stay keep
    theirs.

    Args:
        settings: the dense network.
        plan: its sites.
        sized: the method, or the allocation, that stands in them.
        image_shape: (C, H, W) of its images.
        classes: number of classes.
        seed: of the initial weights.

    Returns:
        The network.

    Raises:
        AssertionError: it has another number of parameters than the plan counts (without an auxiliary head), so that
            a budget relied on a wrong count.
        InputError: there is no such network, or it does not take such images.
    """
    is_dense, anew = isinstance(sized, Dense), BuilderWeights()
    keep_dense = keeps_own_weights(settings)
    if not is_dense:
        settings = without_weights(settings)
        anew = find_builder_weights(settings, image_shape, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(settings, image_shape, classes)
        redraw(network, anew)
        replace_sites(network, plan, sized, keep_dense=keep_dense)
    count = count_parameters(network, settings)
    assert count == plan.params(sized), f"{sized} was counted as {plan.params(sized)} parameters but has {count}"
    return network


def count_parameters(network: nn.Module, settings: NetworkSettings) -> int:
    """Count the parameters of a network as its plan does.

    Args:
        network: dense or with a method in its sites.
        settings: what it was built from.

    Returns:
        All parameters, shared ones once; without those of an auxiliary head that the settings ask for.
    """
    prefix = f"{AUXILIARY}." if settings.auxiliary else None
    parameters = network.named_parameters()
    return sum(value.numel() for name, value in parameters if prefix is None or not name.startswith(prefix))


class SizedStudent(NamedTuple):
    """A network with a method in its sites, and what it was built from.

    Attributes:
        network: the module.
        plan: the sites of the dense network.
        sized: the method, or the allocation, that stands in them.
    """

    network: nn.Module
    plan: NetworkPlan
    sized: SizedMethod


def build_sized_student(
    settings: NetworkSettings,
    method: Mapping[str, Any],
    image_shape: ImageShape,
    classes: int,
    *,
    allocation: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> SizedStudent:
    """Build a named network with a method in its sites, from plain settings.

    Args:
        settings: the dense network.
        method: settings of the method, as `make_method` takes them.
        image_shape: (C, H, W) of its images.
        classes: number of classes.
        allocation: a method for each group of layers, as `NetworkPlan.sized` takes it; None for one method everywhere.
        seed: of the initial weights.

    Returns:
        The network with its plan and its sized method.

    Raises:
        InputError: the settings are wrong, or the method does not fit some site.
        UncountableError: a layer of the network has no counting rule.
    """
    plan, sized = plan_sized_network(settings, method, image_shape, classes, allocation=allocation)
    return SizedStudent(build_student(settings, plan, sized, image_shape, classes, seed), plan, sized)


def factor_parameters(network: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are factors of structured maps.

    Compression-scaled weight decay applies to them.

    Args:
        network: any module.

    Returns:
        The parameters, in the order of its modules.
    """
    structured = (module for module in network.modules() if isinstance(module, StructuredMap | KernelChain))
    return [factor for module in structured for factor in module.factors()]
