"""The points of a space: which fields a point has, and how one is drawn by a sampler or listed as a grid.

A point is plain data: dotted name -> value. The shares of an allocation are one field for each group of layers
(`share.stage2`); only points whose allocation is uneven have them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowrank.errors import InputError
from sweeps.space.domains import Domain, Value
from sweeps.space.model import Space
from sweeps.space.settings import ALLOCATIONS_BY_ERROR
from sweeps.space.strata import Point, Stratum

if TYPE_CHECKING:
    import optuna

SHARE_PREFIX = "share."
SHARES_FIELD = "budget.shares"
ALLOCATION_FIELD = "budget.allocation"
MAX_GRID_POINTS = 10_000  # every one is solved before the first is trained
Groups = Mapping[str, tuple[str, ...]]  # allocation -> names of its groups of layers


@dataclass(frozen=True)
class Points:
    """The points of one space.

    `groups` names the groups of layers among which a budget can be divided; {} where the space has no shares.
    """

    space: Space
    groups: Groups = field(default_factory=dict)

    def domains(self, alternative: int = 0) -> dict[str, Domain]:
        """List the fields that every point has; shares are left out.

        Args:
            alternative: index of the `method` section.

        Returns:
            Domains by dotted name.
        """
        domains = self.space.searched_domains(alternative)
        return {name: domain for name, domain in domains.items() if name != SHARES_FIELD}

    def shares(self, point: Point) -> dict[str, Domain]:
        """List the fields that a point's allocation adds: the weight of each group of layers.

        Args:
            point: may leave fields open.

        Returns:
            Domains by dotted name; {} for an even allocation.
        """
        domain = self.space.domains.get(SHARES_FIELD)
        allocation = str(point.get(ALLOCATION_FIELD, self.space.budget.allocation))
        if domain is None or allocation == "even":
            return {}
        group_names = self.groups["layer" if allocation in ALLOCATIONS_BY_ERROR else allocation]
        return {f"{SHARE_PREFIX}{group}": domain for group in group_names}

    def suggest(self, stratum: Stratum, trial: optuna.Trial) -> dict[str, Value]:
        """Draw a point of a stratum with the sampler of an Optuna trial's study.

        Args:
            stratum: what the point must belong to.
            trial: an open Optuna trial.

        Returns:
            The point.
        """
        point: dict[str, Value] = dict(stratum.fixed)
        for name, domain in self.domains().items():
            if name not in point:
                point[name] = restrict_to_stratum(domain, name, stratum).suggest(trial, name)
        for name, domain in self.shares(point).items():
            point[name] = domain.suggest(trial, name)
        return point

    def point_at(self, stratum: Stratum, coordinates: list[float]) -> dict[str, Value]:
        """Find the point of a stratum at coordinates in the unit cube.

        Args:
            stratum: what the point belongs to.
            coordinates: `coordinate_count(stratum)` numbers from 0 to below 1.

        Returns:
            The point.
        """
        point: dict[str, Value] = dict(stratum.fixed)
        remaining = iter(coordinates)
        for name, domain in self.domains().items():
            if name not in point:
                point[name] = restrict_to_stratum(domain, name, stratum).value_at(next(remaining))
        for name, domain in self.shares(point).items():
            point[name] = domain.value_at(next(remaining))
        return point

    def coordinate_count(self, stratum: Stratum) -> int:
        """Count the coordinates that a point of a stratum has at most.

        Args:
            stratum: some of whose fields may be fixed.

        Returns:
            The count.
        """
        free = sum(name not in dict(stratum.fixed) for name in self.domains())
        domain = self.space.domains.get(ALLOCATION_FIELD)
        points: list[Point] = [{}] if domain is None else [{ALLOCATION_FIELD: value} for value in domain.corners()]
        return free + max(len(self.shares(point)) for point in points)

    def grid(self) -> list[dict[str, Value]]:
        """List all combinations of finite domains, one `method` section after the other.

        Returns:
            The points; those of a space with several `method` sections have `alternative`, the section's index.

        Raises:
            InputError: there are more than MAX_GRID_POINTS.
        """
        check_grid_size(self.size())
        points = []
        for index in range(len(self.space.alternatives)):
            section: Point = {"alternative": index} if len(self.space.alternatives) > 1 else {}
            for point in _product(self.domains(index)):
                points += [{**point, **section, **shares} for shares in _product(self.shares(point))]
        return points

    def size(self) -> int | None:
        """Count the points.

        Returns:
            The count; None where a domain is continuous.
        """
        total = 0
        for index in range(len(self.space.alternatives)):
            domains = self.domains(index)
            allocation = domains.pop(ALLOCATION_FIELD, None)
            points: list[Point] = [{}] if allocation is None else [
                {ALLOCATION_FIELD: value} for value in allocation.corners()
            ]  # fmt: skip
            for point in points:
                counts = [domain.count() for domain in (*domains.values(), *self.shares(point).values())]
                if None in counts:
                    return None
                total += math.prod(count or 0 for count in counts)
        return total

    def point_domains(self, point: Point, stratum: Stratum) -> dict[str, Domain] | None:
        """List the domains of a complete point of a stratum.

        Args:
            point: the point, which may come from another study.
            stratum: what it should belong to.

        Returns:
            Domains of its searched fields by dotted name; None where it lacks a field or is not of the stratum.
        """
        if not stratum.contains(point) and (stratum.fixed or stratum.budget):
            return None
        domains = {
            name: restrict_to_stratum(domain, name, stratum)
            for name, domain in self.domains().items()
            if name not in dict(stratum.fixed)
        }
        domains.update(self.shares(point))
        if any(name not in point or not domain.contains(point[name]) for name, domain in domains.items()):
            return None
        return domains


def restrict_to_stratum(domain: Domain, name: str, stratum: Stratum) -> Domain:
    """Cut a field's domain to the part that belongs to a stratum.

    Args:
        domain: of the field.
        name: the field's dotted name.
        stratum: the stratum.

    Returns:
        The stratum's part of the budget that is searched; any other domain as it is.
    """
    return domain.between(*stratum.interval) if name == stratum.budget else domain


def check_grid_size(size: int | None) -> None:
    """Check that the points of a grid can be listed.

    Args:
        size: their number; None where a domain is continuous.

    Raises:
        InputError: there are more than MAX_GRID_POINTS.
    """
    if size is not None and size > MAX_GRID_POINTS:
        raise InputError(
            f"a grid must have at most {MAX_GRID_POINTS:,} points, but this one has {size:,}; give larger steps or "
            "fewer choices, or another `search.sampler`"
        )


def _product(domains: Mapping[str, Domain]) -> list[dict[str, Value]]:
    lists = [domain.grid() or () for domain in domains.values()]
    return [dict(zip(domains, values, strict=True)) for values in itertools.product(*lists)]
