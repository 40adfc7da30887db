"""Strata: ranges of size within which trials are searched, stopped and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.space.domains import Domain, Range, Value
from sweeps.space.model import Space
from sweeps.space.settings import LIMITS

REFERENCE_STRATUM = "reference"
ALL_SIZES = "all sizes"
MAX_LISTED_STRATA = 16  # up to so many values of a budget are a stratum each; more are halved like a range
Point = Mapping[str, Value]  # dotted name (or "alternative") -> value


@dataclass(frozen=True)
class Stratum:
    """A range of sizes within which trials are compared."""

    label: str
    limit: float  # the most parameters; infinity where they are not limited
    fixed: tuple[tuple[str, Value], ...] = ()  # budget fields and their values, the same for every point of the stratum
    budget: str = ""  # a searched budget field; its part in this stratum is `interval`
    interval: tuple[float, float] = (0.0, 0.0)
    is_open: bool = False  # the lower end of `interval` is the upper end of the stratum below, to which it belongs
    covers_all: bool = False  # the space has one budget, so every point belongs to it

    def contains(self, point: Point) -> bool:
        """Tell whether the budget of a point belongs to this stratum."""
        if self.covers_all:
            return True
        if self.fixed:
            return all(point.get(name) == value for name, value in self.fixed)
        value = point.get(self.budget)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.interval[0] <= value <= self.interval[1] and not (self.is_open and value == self.interval[0])

    def admits(self, point: Point) -> bool:
        """Tell whether a point that leaves fields open can be completed in this stratum."""
        if any(name in point and point[name] != value for name, value in self.fixed):
            return False
        return not self.budget or self.budget not in point or self.contains(point)


def make_strata(space: Space, separable_params: int, dense_params: int | None = None) -> tuple[Stratum, ...]:
    """Make the strata that are searched, each by a sampler of its own.

    They are the values of a listed budget, halvings of a budget's range, the one budget that is set, or else halvings
    of size. A space with several objectives is one stratum; early stopping still compares within halvings of size.

    Args:
        space: the space.
        separable_params: parameters of the separable form of its network.
        dense_params: those of the network itself; None where no budget is a share of it.

    Returns:
        The strata, smallest first.
    """
    sizes = {"separable": separable_params, "dense": dense_params}
    searched = next((f"budget.{name}" for name in LIMITS if f"budget.{name}" in space.domains), None)
    if len(space.search.objectives) > 1:
        return (Stratum(ALL_SIZES, math.inf),)
    if searched is not None:
        domain = space.domains[searched]
        count = domain.count()
        if count is not None and count <= MAX_LISTED_STRATA:
            values = [float(value) for value in domain.grid() or () if value is not None]
            return _listed(space, searched, values, sizes)
        return _halved_budget(space, searched, domain, sizes)
    limited = next((name for name in LIMITS if getattr(space.budget, name) is not None), None)
    if not space.has_budget or limited is None:
        return halving_strata(separable_params)
    label, limit = _size_label(space, f"budget.{limited}", float(getattr(space.budget, limited)), sizes)
    return (Stratum(label, limit, covers_all=True),)


def _size_label(space: Space, name: str, value: float, sizes: Mapping[str, int | None]) -> tuple[str, float]:
    """A stratum's label and limit on parameters; `sizes` are parameters of what a budget may be relative to."""
    field = name.removeprefix("budget.")
    quantity = "step (ms)" if field == "step_ms" else field.replace("_", "-")
    if name == "budget.params" and space.budget.relative_to in (None, "separable"):
        limit = int(value * (sizes["separable"] or 0) if space.budget.relative_to else value)
        return f"params <= {limit:,}", limit
    if space.budget.relative_to:
        reference_size = sizes[space.budget.relative_to] if name == "budget.params" else None
        return f"{quantity} <= {value:g} of {space.budget.relative_to}", math.inf if reference_size is None else int(
            value * reference_size
        )
    return f"{quantity} <= {value:,.0f}" if value >= 100 else f"{quantity} <= {value:g}", math.inf


def _listed(space: Space, name: str, values: list[float], sizes: Mapping[str, int | None]) -> tuple[Stratum, ...]:
    strata = []
    for value in sorted(values):
        label, limit = _size_label(space, name, value, sizes)
        strata.append(Stratum(label, limit, fixed=((name, value),)))
    return tuple(strata)


def _halved_budget(space: Space, name: str, domain: Domain, sizes: Mapping[str, int | None]) -> tuple[Stratum, ...]:
    strata: list[Stratum] = []
    ends = [float(value) for value in domain.corners() if value is not None]
    low, top = min(ends), max(ends)
    is_continuous = isinstance(domain, Range) and domain.step is None and not domain.integer
    while not strata or top > low * 1.0001:
        bottom = max(low, top / 2)
        is_lowest = bottom <= low * 1.0001
        if interval := _values_between(domain, low - 1 if is_lowest and not is_continuous else bottom, top):
            label, limit = _size_label(space, name, top, sizes)
            is_open = is_continuous and not is_lowest
            strata.append(Stratum(label, limit, budget=name, interval=interval, is_open=is_open))
        top = bottom
    return tuple(reversed(strata))


def _values_between(domain: Domain, above: float, high: float) -> tuple[float, float] | None:
    """The smallest and largest value of a budget's domain that are above `above` and at most `high`."""
    if isinstance(domain, Range):
        return domain.values_between(above, high)
    values = [float(value) for value in domain.values if value is not None and above < float(value) <= high]
    return (min(values), max(values)) if values else None


def halving_strata(separable_params: int) -> tuple[Stratum, ...]:
    """Make strata of size, each with twice the limit of the one before.

    Args:
        separable_params: parameters of the separable form of the network.

    Returns:
        Strata from a 32nd of that size to the size itself, and one without a limit.
    """
    edges = [separable_params / 2**power for power in range(5, -1, -1)]
    strata = [Stratum(f"params <= {int(edge):,}", edge) for edge in edges]
    return (*strata, Stratum(f"params > {separable_params:,}", math.inf))
