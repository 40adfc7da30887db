"""Allocations: a method of one kind whose size differs between groups of layers.

A group is a stage or a single layer. Its weight multiplies the method's size there. Only the ratios of weights matter,
because all sizes are then scaled by one factor until the network meets its budget (lowrank.compression.budget).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from lowrank.errors import InputError
from lowrank.layers import ConvShape, Dense, Method, make_method

Grouping = Literal["even", "stage", "layer"]
GROUPINGS: tuple[Grouping, ...] = ("even", "stage", "layer")
BY_ERROR = ("energy", "sensitivity")
"""Ways to share a budget out by what each layer's ranks cost in error; every layer is a group then."""


class _Named(Protocol):
    """The part of a site that grouping reads."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> ConvShape: ...


@dataclass(frozen=True)
class Group:
    """Layers that are sized together.

    Attributes:
        name: of the group.
        sites: names of its layers.
        shapes: its distinct shapes, and how often each occurs.
    """

    name: str
    sites: tuple[str, ...]
    shapes: tuple[tuple[ConvShape, int], ...]

    def params(self, method: Method) -> int:
        """Count the parameters of the group's layers with `method` in each."""
        return sum(method.params(shape) * times for shape, times in self.shapes)

    def mult_adds(self, method: Method) -> int:
        """Count the mult-adds for one image of the group's layers with `method` in each."""
        return sum(method.mult_adds(shape) * times for shape, times in self.shapes)

    def infeasible(self, method: Method) -> str | None:
        """Return the first reason why `method` does not fit a layer of the group; None if it fits all."""
        for shape, _ in self.shapes:
            reason = method.infeasible(shape)
            if reason is not None:
                return f"{method.name}: {reason}"
        return None


@dataclass(frozen=True)
class Allocation:
    """A method for each group of layers, of one kind where a layer is replaced.

    Attributes:
        groups: all groups of a network.
        methods: their methods, in the same order.
        by_error: one of BY_ERROR, where errors decided the sizes; "" where they are in given ratios.
    """

    groups: tuple[Group, ...]
    methods: tuple[Method, ...]
    by_error: str = ""

    @property
    def name(self) -> str:
        """The name of the methods."""
        return self.main_method.name

    @property
    def main_method(self) -> Method:
        """The first method that leaves no layer dense; the first of all where every layer stays dense."""
        return next((method for method in self.methods if not isinstance(method, Dense)), self.methods[0])

    @cached_property
    def by_site(self) -> dict[str, Method]:
        """The method of each layer, by the layer's name."""
        pairs = zip(self.groups, self.methods, strict=True)
        return {site: method for group, method in pairs for site in group.sites}

    def uses(self) -> Iterator[tuple[Method, ConvShape, int]]:
        """Yield each method with a shape that it replaces and how often."""
        for group, method in zip(self.groups, self.methods, strict=True):
            for shape, times in group.shapes:
                yield method, shape, times

    def settings(self) -> dict[str, dict[str, object]]:
        """Return the settings of each group's method, as `make_allocation` takes them."""
        pairs = zip(self.groups, self.methods, strict=True)
        return {group.name: method.model_dump(mode="json") for group, method in pairs}


SizedMethod = Method | Allocation  # one method for all sites of a network, or one for each group


def make_groups(sites: Sequence[_Named], grouping: Grouping) -> tuple[Group, ...]:
    """Group sites, in the order in which they run.

    A stage is the first part of the names, such as `stage2` or `layer3`, if all names have one; else it is the layers
    whose outputs have equal areas.

    Args:
        sites: the substituted sites of a network.
        grouping: `even` (all together), `stage` or `layer` (each for itself).

    Returns:
        The groups.
    """
    members: dict[str, list[_Named]] = {"all": []} if grouping == "even" else {}
    named = all(_stage_name(site) for site in sites)
    for site in sites:
        members.setdefault(_group_name(site, grouping, named), []).append(site)
    return tuple(
        Group(name, tuple(site.name for site in group), tuple(Counter(site.shape for site in group).items()))
        for name, group in members.items()
    )


def _group_name(site: _Named, grouping: Grouping, named: bool) -> str:
    if grouping == "even":
        return "all"
    if grouping == "layer":
        return site.name
    return _stage_name(site) if named else f"area{site.shape.out_area}"


def _stage_name(site: _Named) -> str:
    """Return the first part of a site's name if it is `stageN` or `layerN`; "" otherwise."""
    first = site.name.partition(".")[0]
    return first if first[:5] in ("stage", "layer") and first[5:].isdigit() else ""


def make_allocation(
    groups: Iterable[Group], settings: Mapping[str, Mapping[str, Any]], by_error: str = ""
) -> Allocation:  # fmt: skip
    """Make an allocation from settings.

    Args:
        groups: all groups of a network.
        settings: of each group's method, by the group's name.
        by_error: one of BY_ERROR, where errors decided the sizes.

    Returns:
        The allocation.

    Raises:
        InputError: the settings do not name each group once, or those of a method are wrong.
    """
    groups = tuple(groups)
    if {group.name for group in groups} != settings.keys():
        names = ", ".join(group.name for group in groups)
        raise InputError(f"an allocation must name each of the groups {names} once, but got {', '.join(settings)}")
    return Allocation(groups, tuple(make_method(settings[group.name]) for group in groups), by_error)
