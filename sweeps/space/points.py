"""The points of a space: what is searched at each, drawn by a sampler or listed as a grid.

A point is plain data: dotted name -> value. The shares of a budget are one field for each group of layers
(`share.stage2`), there only where the point's own allocation asks for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from sweeps.space.domains import Domain, Range, Value
from sweeps.space.model import Space
from sweeps.space.strata import Point, Stratum

SHARE_PREFIX = "share."
SHARES_FIELD = "budget.shares"
ALLOCATION_FIELD = "budget.allocation"
Groups = Mapping[str, tuple[str, ...]]  # allocation -> names of its groups


@dataclass(frozen=True)
class Points:
    """The points of one space; `groups` names the layers among which its network's budget can be shared."""

    space: Space
    groups: Groups = field(default_factory=dict)

    def domains(self, alternative: int = 0) -> dict[str, Domain]:
        """Every field that each point has, with one of the space's `method` sections; shares are left out."""
        found = self.space.searched_domains(alternative)
        return {name: domain for name, domain in found.items() if name != SHARES_FIELD}

    def shares(self, point: Point) -> dict[str, Domain]:
        """The fields that the point's allocation adds: the weight of each group."""
        domain = self.space.domains.get(SHARES_FIELD)
        allocation = str(point.get(ALLOCATION_FIELD, self.space.budget.allocation))
        if domain is None or allocation == "even":
            return {}
        return {f"{SHARE_PREFIX}{group}": domain for group in self.groups[allocation]}

    def suggest(self, stratum: Stratum, trial: optuna.Trial) -> dict[str, Value]:
        """A point of the stratum, drawn by whichever sampler the trial's study has."""
        point: dict[str, Value] = dict(stratum.fixed)
        for name, domain in self.domains().items():
            if name not in point:
                point[name] = restrict_to_stratum(domain, name, stratum).suggest(trial, name)
        for name, domain in self.shares(point).items():
            point[name] = domain.suggest(trial, name)
        return point

    def point_at(self, stratum: Stratum, coordinates: list[float]) -> dict[str, Value]:
        """Give the point at `coordinate_count(stratum)` coordinates, each from 0 to below 1, of the stratum."""
        point: dict[str, Value] = dict(stratum.fixed)
        remaining = iter(coordinates)
        for name, domain in self.domains().items():
            if name not in point:
                point[name] = restrict_to_stratum(domain, name, stratum).value_at(next(remaining))
        for name, domain in self.shares(point).items():
            point[name] = domain.value_at(next(remaining))
        return point

    def coordinate_count(self, stratum: Stratum) -> int:
        """How many coordinates a point of the stratum has at most."""
        own = sum(name not in dict(stratum.fixed) for name in self.domains())
        kinds = self.space.domains[ALLOCATION_FIELD].corners() if ALLOCATION_FIELD in self.space.domains else ()
        return own + max((len(self.shares({ALLOCATION_FIELD: kind})) for kind in kinds), default=len(self.shares({})))

    def grid(self) -> list[dict[str, Value]]:
        """All combinations of finite domains, alternatives of `method` one after the other."""
        found = []
        for index in range(len(self.space.alternatives)):
            of = {"alternative": index} if len(self.space.alternatives) > 1 else {}
            for point in _product(self.domains(index)):
                found += [{**point, **of, **shares} for shares in _product(self.shares(point))]
        return found

    def size(self) -> int | None:
        """How many points there are; None when they are endless."""
        every = [domain for index in range(len(self.space.alternatives)) for domain in self.domains(index).values()]
        every += [self.space.domains[SHARES_FIELD]] if SHARES_FIELD in self.space.domains else []
        return None if any(domain.grid() is None for domain in every) else len(self.grid())

    def point_domains(self, point: Point, stratum: Stratum) -> dict[str, Domain] | None:
        """The domains of the point's fields, where it is a whole point of this stratum; None where it is not."""
        if not stratum.contains(point) and (stratum.fixed or stratum.budget):
            return None
        domains = {name: restrict_to_stratum(each, name, stratum) for name, each in self.domains().items()}
        domains = {name: each for name, each in domains.items() if name not in dict(stratum.fixed)}
        domains.update(self.shares(point))
        if any(name not in point or not domain.contains(point[name]) for name, domain in domains.items()):
            return None
        return domains


def restrict_to_stratum(domain: Domain, name: str, stratum: Stratum) -> Domain:
    """The part of a field's domain that belongs to the stratum."""
    if name == stratum.budget and isinstance(domain, Range):
        return Range(*stratum.interval, log=domain.log, integer=domain.integer)
    return domain


def _product(domains: Mapping[str, Domain]) -> list[dict[str, Value]]:
    lists = [domain.grid() or () for domain in domains.values()]
    return [dict(zip(domains, values, strict=True)) for values in itertools.product(*lists)]
