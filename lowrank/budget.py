"""Budgets: the largest setting of a method whose network stays within limits on parameters and mult-adds.

Every count is a step function of the method's scale that never falls, so the largest admissible scale is found by
bisection over the floating-point numbers themselves: the very next one would exceed the budget. Of the settings on
that step, the one with the fewest decimals is returned. A method whose size is an integer lists its settings instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from lowrank.errors import InfeasibleError
from lowrank.layers.base import Method
from lowrank.networks import NetworkSettings
from lowrank.plan import NetworkPlan, network_plan

_THINNEST = 1e-9  # a width at which every layer has one channel; also how finely widths are told apart


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits for the whole network; None is no limit. Mult-adds are for one image."""

    params: int | None = None
    mult_adds: int | None = None

    def exceeded(self, plan: NetworkPlan, method: Method) -> str | None:
        """Which limit the network with `method` breaks and by how much; None if it keeps all."""
        for what, limit, count in (
            ("parameters", self.params, plan.params),
            ("mult-adds", self.mult_adds, plan.mult_adds),
        ):
            if limit is not None and (found := count(method)) > limit:
                return f"{found:,} {what}, over the budget of {limit:,}"
        return None


def solve(plan: NetworkPlan, method: Method, budget: Budget) -> Method:
    """The largest setting of `method` (its own scale is ignored) within `budget`; raises InfeasibleError.

    The error names the nearest possible value and, where that is the cause, what is never substituted.
    """
    if method.scale is None:
        return _largest(plan, method, budget)
    low, high = _scale_limits(method)

    def feasible(scale: float) -> bool:
        return plan.infeasible(method.with_scale(scale)) is None

    if not feasible(high):
        raise InfeasibleError(f"{plan.infeasible(method.with_scale(high))}")
    least = low if feasible(low) else _boundary(lambda scale: not feasible(scale), low, high)[1]
    smallest = method.with_scale(least)
    if (excess := budget.exceeded(plan, smallest)) is not None:
        raise InfeasibleError(_impossible(plan, smallest, excess))
    if budget.exceeded(plan, method.with_scale(high)) is None:
        return _shortest(plan, method, least, high)
    largest, _ = _boundary(lambda scale: budget.exceeded(plan, method.with_scale(scale)) is None, least, high)
    return _shortest(plan, method, least, largest)


@lru_cache(maxsize=256)
def solve_width(
    network: NetworkSettings, image_shape: tuple[int, int, int], classes: int, method: Method, budget: Budget
) -> NetworkSettings:
    """The widest of the thinner networks (`width` <= 1) that keeps `budget` with `method` in it: the baseline.

    Widths are told apart to 1e-9, finer than any two steps of networks with up to ten thousand channels; the one with
    the fewest decimals is returned. Raises InfeasibleError, naming the thinnest network's size.
    """

    def plan(width: float) -> NetworkPlan:
        return network_plan(network.model_copy(update={"width": width}), image_shape, classes)

    def fits(width: float) -> bool:
        return budget.exceeded(plan(width), method) is None

    if (excess := budget.exceeded(plan(_THINNEST), method)) is not None:
        raise InfeasibleError(f"{network.name} cannot be that thin: with one channel in each layer it has {excess}")
    widest = 1.0 if fits(1.0) else _boundary(fits, _THINNEST, 1.0, apart=_THINNEST)[0]
    for decimals in range(1, 10):
        width = math.floor(widest * 10**decimals) / 10**decimals
        if width > 0 and plan(width).shapes == plan(widest).shapes:
            return network.model_copy(update={"width": width})
    return network.model_copy(update={"width": widest})


def _largest(plan: NetworkPlan, method: Method, budget: Budget) -> Method:
    """The largest of the settings that a method without a continuous scale lists (counts need not be monotone)."""

    def size(setting: Method) -> tuple[int, int]:
        counts = plan.params(setting), plan.mult_adds(setting)
        return counts if budget.params is not None else counts[::-1]

    settings = list(method.settings_by_size([shape for shape, _ in plan.shapes]))
    feasible = [setting for setting in settings if plan.infeasible(setting) is None]
    if not feasible:
        raise InfeasibleError(f"{plan.infeasible(settings[0])}")
    within = [setting for setting in feasible if budget.exceeded(plan, setting) is None]
    if not within:
        smallest = min(feasible, key=size)
        raise InfeasibleError(_impossible(plan, smallest, str(budget.exceeded(plan, smallest))))
    return max(within, key=size)


def _impossible(plan: NetworkPlan, smallest: Method, excess: str) -> str:
    settings = ", ".join(
        f"{key} {value}" for key, value in smallest.model_dump().items() if key not in ("name", smallest.scale)
    )
    shown = f"{smallest.name} ({settings})" if settings else smallest.name
    return (
        f"{shown} cannot be that small in {plan.name}: its smallest setting has {excess}; "
        f"{plan.fixed_params:,} parameters and {plan.fixed_mult_adds:,} mult-adds are never substituted"
    )


def _scale_limits(method: Method) -> tuple[float, float]:
    """The open lower and closed upper limit of the scale, from the field's own declaration."""
    metadata = type(method).model_fields[str(method.scale)].metadata
    lower = next(float(item.gt) for item in metadata if hasattr(item, "gt"))
    upper = next(float(item.le) for item in metadata if hasattr(item, "le"))
    return math.nextafter(lower, upper) if lower else 1e-9, upper


def _boundary(holds: Callable[[float], bool], low: float, high: float, apart: float = 0.0) -> tuple[float, float]:
    """Neighbouring floats (or closer than `apart`) with holds(a) and not holds(b), given so of `low` and `high`."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high) or high - low < apart:
            return low, high
        if holds(middle):
            low = middle
        else:
            high = middle


def _shortest(plan: NetworkPlan, method: Method, least: float, scale: float) -> Method:
    """The setting on the same step as `scale` that has the fewest decimals, cut towards zero."""
    target = plan.signature(method.with_scale(scale))
    for decimals in range(1, 17):
        candidate = math.floor(scale * 10**decimals) / 10**decimals
        if candidate >= least:
            found = method.with_scale(candidate)
            if plan.signature(found) == target:
                return found
    return method.with_scale(scale)
