"""Strata: ranges of size within which trials are searched, stopped and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.space.domains import Value
from sweeps.space.model import Space
from sweeps.space.settings import LIMITS

REFERENCE_STRATUM = "reference"
ALL_SIZES = "all sizes"
MAX_LISTED_STRATA = 16  # budget values that are strata of their own; more are halved like a range
Point = Mapping[str, Value]  # dotted name (or "alternative") -> value


@dataclass(frozen=True)
class Stratum:
    """A range of sizes within which trials are compared: at most `limit` parameters, where that is known."""

    label: str
    limit: float
    fixed: tuple[tuple[str, Value], ...] = ()  # budget values that every proposal in this stratum has
    budget: str = ""  # a searched budget field; `interval` is the part of it in here
    interval: tuple[float, float] = (0.0, 0.0)
    covers_all: bool = False  # the space has one budget, and every point is of it

    def contains(self, point: Point) -> bool:
        """Whether the budget that the point proposes is this stratum's."""
        if self.covers_all:
            return True
        if self.fixed:
            return all(point.get(name) == value for name, value in self.fixed)
        value = point.get(self.budget)
        return isinstance(value, int | float) and self.interval[0] <= value <= self.interval[1]

    def admits(self, point: Point) -> bool:
        """Whether a point that may leave fields open, its budget among them, can be completed in this stratum."""
        if any(name in point and point[name] != value for name, value in self.fixed):
            return False
        return not self.budget or self.budget not in point or self.contains(point)


def make_strata(space: Space, separable_params: int) -> tuple[Stratum, ...]:
    """The strata that are searched: a listed budget's values, halvings of a budget range, the one budget that there is,
    else halvings of size.

    Several objectives compare all sizes in one search (stopping still compares within halvings of size).
    """
    searched = next((f"budget.{name}" for name in LIMITS if f"budget.{name}" in space.domains), None)
    if len(space.search.objectives) > 1:
        return (Stratum(ALL_SIZES, math.inf),)
    if searched is not None:
        domain = space.domains[searched]
        values = domain.grid()
        if values is not None and len(values) <= MAX_LISTED_STRATA:
            return _listed(space, searched, [float(value) for value in values if value is not None], separable_params)
        low, high = domain.corners()
        return _halved_budget(space, searched, (float(low or 0), float(high or 0)), separable_params)
    given = next((name for name in LIMITS if getattr(space.budget, name) is not None), None)
    if not space.solves or given is None:
        return halving_strata(separable_params)
    label, limit = _size_label(space, f"budget.{given}", float(getattr(space.budget, given)), separable_params)
    return (Stratum(label, limit, covers_all=True),)


def _size_label(space: Space, name: str, value: float, separable_params: int) -> tuple[str, float]:
    what = {"step_ms": "step (ms)"}.get(name.removeprefix("budget."), name.removeprefix("budget.").replace("_", "-"))
    if name == "budget.params" and space.budget.relative_to in (None, "separable"):
        limit = int(value * separable_params if space.budget.relative_to else value)
        return f"params <= {limit:,}", limit
    if space.budget.relative_to:
        return f"{what} <= {value:g} of {space.budget.relative_to}", math.inf
    return f"{what} <= {value:,.0f}" if value >= 100 else f"{what} <= {value:g}", math.inf


def _listed(space: Space, name: str, values: list[float], separable_params: int) -> tuple[Stratum, ...]:
    strata = []
    for value in sorted(values):
        label, limit = _size_label(space, name, value, separable_params)
        strata.append(Stratum(label, limit, fixed=((name, value),)))
    return tuple(strata)


def _halved_budget(space: Space, name: str, ends: tuple[float, float], separable_params: int) -> tuple[Stratum, ...]:
    strata: list[Stratum] = []
    low, top = ends
    while not strata or top > low * 1.0001:
        bottom = max(low, top / 2)
        label, limit = _size_label(space, name, top, separable_params)
        strata.append(Stratum(label, limit, budget=name, interval=(bottom, top)))
        top = bottom
    return tuple(reversed(strata))


def halving_strata(separable_params: int) -> tuple[Stratum, ...]:
    """From a 32nd of the separable network's size upwards, each twice the one before; the last is open."""
    edges = [separable_params / 2**power for power in range(5, -1, -1)]
    strata = [Stratum(f"params <= {int(edge):,}", edge) for edge in edges]
    return (*strata, Stratum(f"params > {separable_params:,}", math.inf))
