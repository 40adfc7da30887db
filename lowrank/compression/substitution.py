"""Replaces the eligible convolutions and linear maps of any `nn.Module` by structured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from lowrank.compression.allocation import SizedMethod, method_at
from lowrank.compression.plan import NetworkPlan, Site
from lowrank.compression.trace import ATTENTION, plan_sized_network, trace_plan
from lowrank.errors import InfeasibleError
from lowrank.layers import Dense, KernelChain, Method, StructuredMap, build_linear
from lowrank.networks import ImageShape, NetworkSettings, make_network

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
            f"substituted {len(self.changed)} layers, {self.params:,} parameters in all",
            f"before: {self.dense_params:,} parameters",
        ]
        lines += [f"changed {name}: {shape}" for name, shape in zip(self.changed, self.shapes, strict=True)]
        return "\n".join([*lines, *(f"unchanged {name}: {reason}" for name, reason in self.unchanged)])


def substitute(
    network: nn.Module, method: Method, image_shape: ImageShape, keep: Sequence[str] = (), *, linear: bool = False
) -> SubstitutionReport:
    """Replace every eligible convolution, in place, by the method's layer.

    Unchanged stay: the first convolution, grouped convolutions, linear maps (unless `linear` or the network itself asks
    for them), attention, and modules whose names match `keep` or the network's own patterns. New layers have initial
    weights, and the device and dtype of the layers that they replace.

    Args:
        network: any module whose layers have counting rules.
        method: what to build.
        image_shape: (C, H, W) of its images.
        keep: shell-style patterns of module names that stay, besides the network's own attribute `kept`.
        linear: replace linear maps too.

    Returns:
        What was replaced, what was not, and why.

    Raises:
        InfeasibleError: the method does not fit some layer; the network is unchanged.
        InputError: the network does not take such images.
        UncountableError: a layer has no counting rule; the network is unchanged.
    """
    plan = trace_plan(network, image_shape, keep, linear=linear)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    replace_sites(network, plan, method)
    return _report(plan, method)


def _report(plan: NetworkPlan, method: Method) -> SubstitutionReport:
    unchanged = [(site.name, site.keep_reason) for site in plan.sites if site.keep_reason]
    return SubstitutionReport(
        tuple(site.name for site in plan.substituted), (*unchanged, *((name, ATTENTION) for name in plan.attention)),
        plan.params(method), plan.params(Dense()), tuple(_describe(site, method) for site in plan.substituted),
    )  # fmt: skip


def _describe(site: Site, method: Method) -> str:
    shape = site.shape
    kind = "linear" if site.linear else "{} x {}".format(*shape.kernel)
    counts = f"{site.params:,} -> {method.params(shape):,} parameters"
    return f"{kind}, {shape.in_channels} -> {shape.out_channels} channels, {counts}"


def replace_sites(network: nn.Module, plan: NetworkPlan, sized: SizedMethod) -> None:
    """Replace the layers at the substituted sites of a network, in place, under every name that a layer has.

    Args:
        network: the dense network.
        plan: its sites.
        sized: the method, or the allocation, that builds the new layers.
    """
    replacements = {
        id(network.get_submodule(site.name)): _build_layer(network, site, method_at(sized, site.name))
        for site in plan.substituted
    }
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` gives a shared layer once
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])


def _build_layer(network: nn.Module, site: Site, method: Method) -> nn.Module:
    dense = network.get_submodule(site.name)
    layer = build_linear(method, site.shape) if site.linear else method.build(site.shape)
    weight = dense.weight
    assert isinstance(weight, torch.Tensor)
    return layer.to(weight.device, weight.dtype).train(dense.training)


def build_student(
    settings: NetworkSettings, plan: NetworkPlan, sized: SizedMethod, image_shape: ImageShape, classes: int, seed: int
) -> nn.Module:
    """Build a named network with a method in its sites.

    The seed alone determines its weights.

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(settings, image_shape, classes)
        replace_sites(network, plan, sized)
    parameters = network.named_parameters()
    count = sum(value.numel() for name, value in parameters if not name.startswith(f"{AUXILIARY}."))
    assert count == plan.params(sized), f"{sized} was counted as {plan.params(sized)} parameters but has {count}"
    return network


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
