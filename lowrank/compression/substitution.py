"""Swaps the eligible convolutions and linear maps of any `nn.Module` for structured ones, and reports what it did."""

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
from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.base_method import Method
from lowrank.layers.dense import Dense
from lowrank.layers.linear import build_linear
from lowrank.layers.low_rank.whole_kernel import KernelChain
from lowrank.networks.images import ImageShape
from lowrank.networks.registry import NetworkSettings, make_network

AUXILIARY = "auxiliary"  # the module that trains along and is never counted


@dataclass(frozen=True)
class SubstitutionReport:
    """What `substitute` did: names of the modules replaced, and of those left with the reason.

    `shapes` says what each replaced module was, and with how many parameters it now stands for how many.
    """

    changed: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    params: int
    dense_params: int
    shapes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"substituted {len(self.changed)} layers, {self.params:,} parameters in all",
            f"before: {self.dense_params:,} parameters",
        ]
        lines += [f"changed {name}: {shape}" for name, shape in zip(self.changed, self.shapes, strict=True)]
        return "\n".join([*lines, *(f"left {name}: {reason}" for name, reason in self.left)])


def substitute(
    network: nn.Module, method: Method, image_shape: ImageShape, keep: Sequence[str] = (), *, linear: bool = False
) -> SubstitutionReport:
    """Replace, in place, every eligible convolution of `network` by what `method` builds for its shape.

    Left as they are: the first convolution, grouped convolutions, linear maps unless `linear` (or the network itself)
    asks for them, attention, and modules whose names match the network's own `kept` patterns or those given. New
    layers start from scratch, on the device and with the dtype of the layers that they replace. Raises
    InfeasibleError when `method` cannot stand somewhere, UncountableError for a network with a layer that has no
    counting rule; the network is then unchanged.
    """
    plan = trace_plan(network, image_shape, keep, linear=linear)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    replace_sites(network, plan, method)
    return _report(plan, method)


def _report(plan: NetworkPlan, method: Method) -> SubstitutionReport:
    left = [(site.name, site.keep_reason) for site in plan.sites if site.keep_reason]
    return SubstitutionReport(
        tuple(site.name for site in plan.substituted), (*left, *((name, ATTENTION) for name in plan.wholes)),
        plan.params(method), plan.params(Dense()), tuple(_described(site, method) for site in plan.substituted),
    )  # fmt: skip


def _described(site: Site, method: Method) -> str:
    shape = site.shape
    kind = "linear" if site.linear else "{} x {}".format(*shape.kernel)
    counts = f"{site.params:,} -> {method.params(shape):,} parameters"
    return f"{kind}, {shape.in_channels} -> {shape.out_channels} channels, {counts}"


def replace_sites(network: nn.Module, plan: NetworkPlan, sized: SizedMethod) -> None:
    """Put what the method of each substituted site of `plan` builds there, under each of the names that a layer has."""
    new = {
        id(network.get_submodule(site.name)): _built(network, site, method_at(sized, site.name))
        for site in plan.substituted
    }
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` gives a shared layer once
            if id(child) in new:
                setattr(parent, name, new[id(child)])


def _built(network: nn.Module, site: Site, method: Method) -> nn.Module:
    old = network.get_submodule(site.name)
    layer = build_linear(method, site.shape) if site.linear else method.build(site.shape)
    weight = old.weight
    assert isinstance(weight, torch.Tensor)
    return layer.to(weight.device, weight.dtype).train(old.training)


def build_student(
    settings: NetworkSettings, plan: NetworkPlan, sized: SizedMethod, image_shape: ImageShape, classes: int, seed: int
) -> nn.Module:
    """The named network with a method, or an allocation, in the sites of its `plan`, drawn from `seed` alone.

    The built network's parameters are checked against the plan's count (which leaves out an auxiliary head); a
    difference raises AssertionError, because then some count that a budget relied on was wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(settings, image_shape, classes)
        replace_sites(network, plan, sized)
    parameters = network.named_parameters()
    built = sum(value.numel() for name, value in parameters if not name.startswith(f"{AUXILIARY}."))
    assert built == plan.params(sized), f"{sized} was counted as {plan.params(sized)} parameters but has {built}"
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
    """The parameters of `network` that are factors of structured maps (scaled decay applies to them)."""
    structured = (module for module in network.modules() if isinstance(module, StructuredMap | KernelChain))
    return [factor for module in structured for factor in module.factors()]
