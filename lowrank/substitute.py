"""Swaps the eligible convolutions of any `nn.Module` for structured ones; reports what it changed and what it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lowrank.errors import InfeasibleError
from lowrank.layers.base import Method, StructuredMap
from lowrank.networks import NetworkSettings, make_network
from lowrank.plan import NetworkPlan, Site, trace_plan


@dataclass(frozen=True)
class Report:
    """What `substitute` did: names of the modules replaced, and of those left with the reason."""

    changed: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    params: int

    def __str__(self) -> str:
        lines = [f"substituted {len(self.changed)} layers, {self.params:,} parameters in all"]
        return "\n".join([*lines, *(f"left {name}: {reason}" for name, reason in self.left)])


def substitute(
    network: nn.Module, method: Method, image_shape: tuple[int, int, int], kept: Sequence[str] = ()
) -> Report:
    """Replace, in place, every eligible convolution of `network` by what `method` builds for its shape.

    Left as they are: the first convolution, linear maps, grouped convolutions, and modules whose names match the
    network's own `kept` patterns or those given. New layers start from scratch, on the device and with the dtype of
    the layers that they replace. Raises InfeasibleError when `method` cannot stand somewhere, UncountableError for a
    network with a layer that has no counting rule.
    """
    plan = trace_plan(network, image_shape, kept)
    reason = plan.infeasible(method)
    if reason is not None:
        raise InfeasibleError(reason)
    for site in plan.substituted:
        _replace(network, site, method)
    left = tuple((site.name, site.kept) for site in plan.sites if site.kept)
    return Report(tuple(site.name for site in plan.substituted), left, plan.params(method))


def _replace(network: nn.Module, site: Site, method: Method) -> None:
    parent_name, _, child_name = site.name.rpartition(".")
    parent = network.get_submodule(parent_name)
    old = getattr(parent, child_name)
    new = method.build(site.shape).to(old.weight.device, old.weight.dtype)
    new.train(old.training)
    setattr(parent, child_name, new)


def build_student(
    settings: NetworkSettings, plan: NetworkPlan, method: Method, image_shape: tuple[int, int, int],
    classes: int, seed: int,
) -> nn.Module:  # fmt: skip
    """The named network with `method` in every substituted site of its `plan`, drawn from `seed` alone.

    The built network's parameters are checked against the plan's count; a difference raises AssertionError, because
    then some count that a budget relied on was wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(settings, image_shape, classes)
        for site in plan.substituted:
            _replace(network, site, method)
    built = sum(parameter.numel() for parameter in network.parameters())
    assert built == plan.params(method), f"{method} was counted as {plan.params(method)} parameters but has {built}"
    return network


def factor_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of `network` that are factors of structured maps (scaled decay applies to them)."""
    return [factor for module in network.modules() if isinstance(module, StructuredMap) for factor in module.factors()]
