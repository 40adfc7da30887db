"""All sizes of one method in one network, from small to large, along a single number.

A family is what a budget is solved on: the number is the method's scale, or the common factor of the groups among
which a budget is shared, or the place in a list for a method whose size is an integer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from lowrank.compression.allocation import Allocation, Group, Grouping, SizedMethod
from lowrank.compression.plan import NetworkPlan
from lowrank.errors import InfeasibleError, InputError, unknown
from lowrank.layers import Separable
from lowrank.layers.base_method import Method

Test = Callable[[SizedMethod], bool]


class Family(Protocol):
    """The sizes of one method in one network."""

    def smallest(self, *, by_work: bool) -> SizedMethod:
        """The smallest that is feasible everywhere; `by_work` compares by mult-adds first, else by parameters."""

    def largest(self, fits: Test, wanted: Test, *, by_work: bool) -> SizedMethod | None:
        """The largest that `fits`, among those one that is `wanted` if there is any; None if nothing fits."""


def make_family(plan: NetworkPlan, method: Method, grouping: Grouping, weights: Mapping[str, float]) -> Family:
    """The family of `method` in the network; raises InfeasibleError when it can stand there in no size.

    Raises InputError for a weight that is not above 0 or that names no group.
    """
    groups = plan.groups(grouping) or plan.groups("even")
    for name, weight in weights.items():
        if name not in {group.name for group in groups}:
            raise unknown(f"group of {plan.name} by {grouping}", name, [group.name for group in groups])
        if not 0 < weight < math.inf:
            raise InputError(f"the weight of {name} must be a number above 0, but got {weight}")
    factors = tuple(float(weights.get(group.name, 1.0)) for group in groups)
    if method.scale is not None:
        return _Scaled(plan, method, groups, factors)
    if len(groups) == 1:
        return _Listed(plan, method)
    return _ListedByGroup(plan, method, groups, factors)


class _Continuous(ABC):
    """A family along a real number: `at(low)` is the smallest, `at(high)` the largest."""

    low: float
    high: float

    def __init__(self, plan: NetworkPlan):
        self.plan = plan

    @abstractmethod
    def at(self, factor: float) -> SizedMethod:
        """The member at `factor`."""

    def smallest(self, *, by_work: bool) -> SizedMethod:
        return self.at(self.low)

    def largest(self, fits: Test, wanted: Test, *, by_work: bool) -> SizedMethod | None:
        """Sizes never fall along the number, so the largest that fits is also the one most likely wanted."""
        if not fits(self.at(self.low)):
            return None
        top = self.high
        if not fits(self.at(top)):
            top, _ = boundary(lambda factor: fits(self.at(factor)), self.low, self.high)
        return self._shortest(top)

    def _shortest(self, factor: float) -> SizedMethod:
        """What stands on the same step as `factor` and has the fewest decimals, cut towards zero."""
        target = self.plan.signature(self.at(factor))
        for decimals in range(1, 17):
            candidate = math.floor(factor * 10**decimals) / 10**decimals
            if candidate >= self.low:
                found = self.at(candidate)
                if self.plan.signature(found) == target:
                    return found
        return self.at(factor)


class _Scaled(_Continuous):
    """A method with a continuous scale: each group's is the factor times its weight, within the method's limits."""

    def __init__(self, plan: NetworkPlan, method: Method, groups: tuple[Group, ...], weights: tuple[float, ...]):
        super().__init__(plan)
        self.method, self.groups, self.weights = method, groups, weights
        self.least, self.most = tuple(_least(method, group) for group in groups), scale_limits(method)[1]
        self.low = min(least / weight for least, weight in zip(self.least, weights, strict=True))
        self.high = max(self.most / weight for weight in weights)

    def at(self, factor: float) -> SizedMethod:
        scales = [
            min(self.most, max(least, factor * weight)) for least, weight in zip(self.least, self.weights, strict=True)
        ]
        if len(scales) == 1:
            return self.method.with_scale(scales[0])
        return Allocation(self.groups, tuple(self.method.with_scale(scale) for scale in scales))


class _ListedByGroup(_Continuous):
    """A method of listed sizes: each group takes the largest within factor * weight of its separable parameters."""

    def __init__(self, plan: NetworkPlan, method: Method, groups: tuple[Group, ...], weights: tuple[float, ...]):
        super().__init__(plan)
        self.groups, self.weights = groups, weights
        self.sizes = [_sizes(method, group) for group in groups]
        wholes = [max(1, group.params(Separable())) for group in groups]
        self.units = [whole * weight for whole, weight in zip(wholes, weights, strict=True)]
        self.low = 0.0
        self.high = max(sizes[-1][0] / unit for sizes, unit in zip(self.sizes, self.units, strict=True)) * (1 + 1e-9)

    def at(self, factor: float) -> SizedMethod:
        chosen = []
        for sizes, unit in zip(self.sizes, self.units, strict=True):
            within = [method for params, method in sizes if params <= factor * unit]
            chosen.append(within[-1] if within else sizes[0][1])
        return Allocation(self.groups, tuple(chosen))


class _Listed:
    """A method of listed sizes, the same everywhere; counts need not be monotone."""

    def __init__(self, plan: NetworkPlan, method: Method):
        self.plan = plan
        settings = list(method.settings_by_size([shape for shape, _ in plan.shapes]))
        self.feasible = [setting for setting in settings if plan.infeasible(setting) is None]
        if not self.feasible:
            raise InfeasibleError(f"{plan.infeasible(settings[0])}")

    def smallest(self, *, by_work: bool) -> SizedMethod:
        return min(self.feasible, key=self._work_first if by_work else self._params_first)

    def largest(self, fits: Test, wanted: Test, *, by_work: bool) -> SizedMethod | None:
        within = [setting for setting in self.feasible if fits(setting)]
        liked = [setting for setting in within if wanted(setting)]
        return max(liked or within, key=self._work_first if by_work else self._params_first, default=None)

    def _params_first(self, setting: Method) -> tuple[int, int]:
        return self.plan.params(setting), self.plan.mult_adds(setting)

    def _work_first(self, setting: Method) -> tuple[int, int]:
        return self.plan.mult_adds(setting), self.plan.params(setting)


def scale_limits(method: Method) -> tuple[float, float]:
    """The open lower and closed upper limit of the scale, from the field's own declaration."""
    metadata = type(method).model_fields[str(method.scale)].metadata
    lower = next(float(item.gt) for item in metadata if hasattr(item, "gt"))
    upper = next(float(item.le) for item in metadata if hasattr(item, "le"))
    return math.nextafter(lower, upper) if lower else 1e-9, upper


def boundary(holds: Callable[[float], bool], low: float, high: float, apart: float = 0.0) -> tuple[float, float]:
    """Neighbouring floats (or closer than `apart`) with holds(a) and not holds(b), given so of `low` and `high`."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high) or high - low < apart:
            return low, high
        if holds(middle):
            low = middle
        else:
            high = middle


def _least(method: Method, group: Group) -> float:
    """The smallest scale that is feasible in the group; raises InfeasibleError when none is."""
    low, high = scale_limits(method)
    reason = group.infeasible(method.with_scale(high))
    if reason is not None:
        raise InfeasibleError(reason)
    if group.infeasible(method.with_scale(low)) is None:
        return low
    return boundary(lambda scale: group.infeasible(method.with_scale(scale)) is not None, low, high)[1]


def _sizes(method: Method, group: Group) -> list[tuple[int, Method]]:
    """Parameters and setting of each listed size that is feasible in the group, ascending; InfeasibleError if none."""
    settings = list(method.settings_by_size([shape for shape, _ in group.shapes]))
    feasible = [setting for setting in settings if group.infeasible(setting) is None]
    if not feasible:
        raise InfeasibleError(f"{group.infeasible(settings[0])}")
    ordered = sorted(feasible, key=lambda setting: (group.params(setting), group.mult_adds(setting)))
    return [(group.params(setting), setting) for setting in ordered]
