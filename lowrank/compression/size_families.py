"""Families: all sizes of one method in one network, ordered by a single number.

A budget is solved along that number: the method's scale, the common factor of the groups of an allocation, or the
position in a list for a method whose size is an integer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from lowrank.compression.allocation import Allocation, Group, Grouping, SizedMethod
from lowrank.compression.plan import NetworkPlan
from lowrank.errors import InfeasibleError, InputError, unknown
from lowrank.layers import Method, Separable

Predicate = Callable[[SizedMethod], bool]


class Family(Protocol):
    """The sizes of one method in one network."""

    def smallest(self, *, by_work: bool) -> SizedMethod:
        """Return the smallest size that fits every site.

        Args:
            by_work: compare sizes by mult-adds first, else by parameters.

        Returns:
            The sized method.
        """

    def largest(self, fits: Predicate, suffices: Predicate, *, by_work: bool) -> SizedMethod | None:
        """Return the largest size within the limits.

        Args:
            fits: whether a size keeps all upper limits.
            suffices: whether a size reaches all lower limits; preferred, not required.
            by_work: compare sizes by mult-adds first, else by parameters.

        Returns:
            The sized method; None if no size fits.
        """


def make_family(plan: NetworkPlan, method: Method, grouping: Grouping, weights: Mapping[str, float]) -> Family:
    """Make the family of a method in a network.

    Args:
        plan: the network's sites.
        method: the method; its own scale is ignored.
        grouping: which layers have one size.
        weights: relative size by group; 1 for a group that is not named.

    Returns:
        The family.

    Raises:
        InfeasibleError: the method fits some site in no size.
        InputError: a weight is not above 0, or names no group.
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
    """A family ordered by a real number: `at(low)` is the smallest size, `at(high)` the largest."""

    low: float
    high: float

    def __init__(self, plan: NetworkPlan):
        self.plan = plan

    @abstractmethod
    def at(self, factor: float) -> SizedMethod:
        """Return the size at `factor`."""

    def smallest(self, *, by_work: bool) -> SizedMethod:
        return self.at(self.low)

    def largest(self, fits: Predicate, suffices: Predicate, *, by_work: bool) -> SizedMethod | None:
        """Find the largest size that fits; `suffices` is not needed, because sizes never fall with the number."""
        if not fits(self.at(self.low)):
            return None
        top = self.high
        if not fits(self.at(top)):
            top, _ = boundary(lambda factor: fits(self.at(factor)), self.low, self.high)
        return self._shortest(top)

    def _shortest(self, factor: float) -> SizedMethod:
        """Return the size whose number has the fewest decimals among those that build the same network as `factor`."""
        target = self.plan.signature(self.at(factor))
        for decimals in range(1, 17):
            candidate = math.floor(factor * 10**decimals) / 10**decimals
            if candidate >= self.low:
                sized = self.at(candidate)
                if self.plan.signature(sized) == target:
                    return sized
        return self.at(factor)


class _Scaled(_Continuous):
    """A method with a continuous scale: a group's scale is the factor times its weight, within the method's limits."""

    def __init__(self, plan: NetworkPlan, method: Method, groups: tuple[Group, ...], weights: tuple[float, ...]):
        super().__init__(plan)
        self.method, self.groups, self.weights = method, groups, weights
        self.minima, self.maximum = tuple(_min_scale(method, group) for group in groups), scale_limits(method)[1]
        self.low = min(minimum / weight for minimum, weight in zip(self.minima, weights, strict=True))
        self.high = max(self.maximum / weight for weight in weights)

    def at(self, factor: float) -> SizedMethod:
        scales = [
            min(self.maximum, max(minimum, factor * weight))
            for minimum, weight in zip(self.minima, self.weights, strict=True)
        ]
        if len(scales) == 1:
            return self.method.with_scale(scales[0])
        return Allocation(self.groups, tuple(self.method.with_scale(scale) for scale in scales))


class _ListedByGroup(_Continuous):
    """A method of listed sizes: a group takes the largest within factor * weight of its separable parameters."""

    def __init__(self, plan: NetworkPlan, method: Method, groups: tuple[Group, ...], weights: tuple[float, ...]):
        super().__init__(plan)
        self.groups, self.weights = groups, weights
        self.sizes = [_list_sizes(method, group) for group in groups]
        separable = [max(1, group.params(Separable())) for group in groups]
        self.units = [params * weight for params, weight in zip(separable, weights, strict=True)]
        self.low = 0.0
        self.high = max(sizes[-1][0] / unit for sizes, unit in zip(self.sizes, self.units, strict=True)) * (1 + 1e-9)

    def at(self, factor: float) -> SizedMethod:
        chosen = []
        for sizes, unit in zip(self.sizes, self.units, strict=True):
            within = [method for params, method in sizes if params <= factor * unit]
            chosen.append(within[-1] if within else sizes[0][1])
        return Allocation(self.groups, tuple(chosen))


class _Listed:
    """A method of listed sizes, one for all sites; counts may fall along the list."""

    def __init__(self, plan: NetworkPlan, method: Method):
        self.plan = plan
        settings = list(method.settings_by_size([shape for shape, _ in plan.shapes]))
        self.feasible = [setting for setting in settings if plan.infeasible(setting) is None]
        if not self.feasible:
            raise InfeasibleError(f"{plan.infeasible(settings[0])}")

    def smallest(self, *, by_work: bool) -> SizedMethod:
        return min(self.feasible, key=self._work_first if by_work else self._params_first)

    def largest(self, fits: Predicate, suffices: Predicate, *, by_work: bool) -> SizedMethod | None:
        within = [setting for setting in self.feasible if fits(setting)]
        sufficient = [setting for setting in within if suffices(setting)]
        return max(sufficient or within, key=self._work_first if by_work else self._params_first, default=None)

    def _params_first(self, setting: Method) -> tuple[int, int]:
        return self.plan.params(setting), self.plan.mult_adds(setting)

    def _work_first(self, setting: Method) -> tuple[int, int]:
        return self.plan.mult_adds(setting), self.plan.params(setting)


def scale_limits(method: Method) -> tuple[float, float]:
    """Return the limits of a method's scale, as its field declares them.

    Args:
        method: a method with a continuous scale.

    Returns:
        The least and the largest scale.
    """
    metadata = type(method).model_fields[str(method.scale)].metadata
    lower = next(float(limit.gt) for limit in metadata if hasattr(limit, "gt"))
    upper = next(float(limit.le) for limit in metadata if hasattr(limit, "le"))
    return math.nextafter(lower, upper) if lower else 1e-9, upper


def boundary(holds: Callable[[float], bool], low: float, high: float, apart: float = 0.0) -> tuple[float, float]:
    """Find where a condition stops holding, by bisection.

    Args:
        holds: the condition; true at `low`, false at `high`.
        low: lower end.
        high: upper end.
        apart: stop when the ends are closer than this; 0 for neighbouring floating-point numbers.

    Returns:
        The last number at which the condition holds, and the next at which it does not.
    """
    while True:
        middle = (low + high) / 2
        if middle in (low, high) or high - low < apart:
            return low, high
        if holds(middle):
            low = middle
        else:
            high = middle


def _min_scale(method: Method, group: Group) -> float:
    """Return the least scale that fits the group; raises InfeasibleError if none does."""
    low, high = scale_limits(method)
    reason = group.infeasible(method.with_scale(high))
    if reason is not None:
        raise InfeasibleError(reason)
    if group.infeasible(method.with_scale(low)) is None:
        return low
    return boundary(lambda scale: group.infeasible(method.with_scale(scale)) is not None, low, high)[1]


def _list_sizes(method: Method, group: Group) -> list[tuple[int, Method]]:
    """List parameters and setting of each size that fits the group, ascending; raises InfeasibleError if none does."""
    settings = list(method.settings_by_size([shape for shape, _ in group.shapes]))
    feasible = [setting for setting in settings if group.infeasible(setting) is None]
    if not feasible:
        raise InfeasibleError(f"{group.infeasible(settings[0])}")
    ordered = sorted(feasible, key=lambda setting: (group.params(setting), group.mult_adds(setting)))
    return [(group.params(setting), setting) for setting in ordered]
