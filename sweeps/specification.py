"""From a point of the space to a trial's specification: sizes solved, counts exact, identity fixed.

A trial is its specification; its id is the hash of what is really built and trained, so that two settings which
round to the same ranks are one trial.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lowrank.budget import Budget, solve
from lowrank.data import ImageData, ViewSettings, default_views
from lowrank.errors import InfeasibleError
from lowrank.layers import Dense, Method, Separable
from lowrank.networks import NetworkSettings
from lowrank.plan import NetworkPlan, network_plan
from lowrank.recipes import Recipe
from sweeps.domains import Value
from sweeps.recipe_check import check_recipes
from sweeps.records import Role
from sweeps.space import Space, method_at
from sweeps.teaching import Teaching, identity

REFERENCE_STRATUM = "reference"
ALL_SIZES = "all sizes"
MOST_LISTED = 16  # budget values that are strata of their own; more are halved like a range
Point = Mapping[str, Value]  # dotted name (or "alternative") -> value


@dataclass(frozen=True)
class Trial:
    """A specification that can be trained, with its exact counts."""

    trial_id: str
    role: Role
    stratum: str
    point: dict[str, Value]
    specification: dict[str, Any]  # sections network, method, train, views, data, seed, teacher: all a worker needs
    counts: dict[str, int]


@dataclass(frozen=True)
class Stratum:
    """A range of sizes within which trials are compared: at most `limit` parameters, where that is known."""

    label: str
    limit: float
    fixed: tuple[tuple[str, Value], ...] = ()  # budget values that every proposal in this stratum has
    budget: str = ""  # a budget field of which `share` is this stratum's part: more than its first, at most its second
    share: tuple[float, float] = (0.0, 0.0)

    def owns(self, point: Point) -> bool:
        """Whether the budget that the point proposes is this stratum's."""
        if self.fixed:
            return all(point.get(name) == value for name, value in self.fixed)
        value = point.get(self.budget)
        return isinstance(value, int | float) and self.share[0] <= value <= self.share[1]


class Resolver:
    """Resolves points of one space on one data set; raises InputError when its recipes do not fit its network."""

    def __init__(self, space: Space, data: ImageData, teaching: Teaching | None = None):
        self.space, self.data, self.teaching = space, data, teaching
        self.image_shape, self.classes = data.image_shape, len(data.classes)
        self.by_size = halved_sizes(self.separable_params)
        self.strata = make_strata(space, self.separable_params)
        check_recipes(space, data)

    @property
    def labels(self) -> tuple[Stratum, ...]:
        """The strata that trials are labelled with: those searched, or halvings of size where all are one search."""
        return self.by_size if self.strata[0].label == ALL_SIZES else self.strata

    def plan(self, network: NetworkSettings) -> NetworkPlan:
        """The network's sites for this data set's images and classes."""
        return network_plan(network, self.image_shape, self.classes)

    @cached_property
    def separable_params(self) -> int:
        """Parameters of the separable form of the space's own network."""
        return self.plan(self.space.network).params(Separable())

    def resolve(self, point: Point) -> Trial:
        """The trial at `point`; raises InfeasibleError with the reason when its limits cannot be met."""
        network = NetworkSettings(**{**self.space.network.model_dump(), **_under(point, "network")})
        method = method_at(self.space.alternatives[int(point.get("alternative") or 0)], _under(point, "method"))
        plan = self.plan(network)
        budget = self._budget(point)
        if self.space.solves:
            method = solve(plan, method, budget)
        elif (reason := plan.infeasible(method)) is not None:
            raise InfeasibleError(reason)
        recipe = self.space.recipe(_under(point, "train"), network.name)
        return self._trial(plan, network, method, recipe, point, Role.SEARCH)

    def reference(self, name: str) -> Trial:
        """A reference network (a method of one size) under the space's own recipe, searched fields at their defaults.

        Its decay is never scaled: it has no factors.
        """
        kind = {"dense": Dense, "separable": Separable}[name]
        plan = self.plan(self.space.network)
        recipe = self.space.recipe({})
        return self._trial(plan, self.space.network, kind(), recipe, {"method.name": name}, Role.REFERENCE)

    def _trial(
        self, plan: NetworkPlan, network: NetworkSettings, method: Method, recipe: Recipe, point: Point, role: Role
    ) -> Trial:
        counts = count(plan, method)
        views = views_for(recipe, self.data, self.space.search.seed)
        specification = {
            "network": network.model_dump(mode="json"), "method": method.model_dump(mode="json"),
            "train": recipe.model_dump(mode="json"), "views": views.model_dump(mode="json"),
            "data": {**self.data.settings.model_dump(mode="json"), "fingerprint": self.data.fingerprint},
            "seed": self.space.search.seed, **self._teacher(recipe, network, point),
        }  # fmt: skip
        # What is built and trained, wherever the images lie
        built = {
            "train": recipe.identity(), "method": plan.signature(method), "data": self.data.fingerprint,
            **identity(specification),
        }  # fmt: skip
        trial_id = hashlib.sha256(json.dumps({**specification, **built}, sort_keys=True).encode()).hexdigest()[:12]
        label = REFERENCE_STRATUM
        if role is Role.SEARCH:
            label = self._stratum(point, counts["params"]).label
        return Trial(trial_id, role, label, dict(point), specification, counts)

    def _teacher(self, recipe: Recipe, network: NetworkSettings, point: Point) -> dict[str, Any]:
        """The section of the teacher, where the recipe asks it."""
        if self.teaching is None:
            return {}
        views = point.get("teacher.views", self.teaching.settings.views)
        return self.teaching.section(recipe, network, None if views is None else int(views), self.data)

    def _stratum(self, point: Point, params: int) -> Stratum:
        """The stratum of the point's own budget; where sizes are not proposed in strata, the one of its size."""
        owner = next((stratum for stratum in self.strata if stratum.owns(point)), None)
        return owner or next(stratum for stratum in self.by_size if params <= stratum.limit)

    def _budget(self, point: Point) -> Budget:
        """The point's limits as counts; shares are of the space's own network, whatever width the point has."""
        values = {**self.space.budget.model_dump(), **_under(point, "budget")}
        plan = self.plan(self.space.network)
        relative = {"dense": Dense(), "separable": Separable()}.get(values["relative_to"] or "")
        base = relative or Separable()

        def limit(name: str, whole: int) -> int | None:
            value = values[name]
            return None if value is None else int(value * whole if relative else value)

        return Budget(params=limit("params", plan.params(base)), mult_adds=limit("mult_adds", plan.mult_adds(base)))


def _under(point: Point, section: str) -> dict[str, Value]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}


def count(plan: NetworkPlan, method: Method) -> dict[str, int]:
    """Parameters and mult-adds (for one image) with `method`, dense and separable, under the records' names."""
    forms = {"": method, "dense_": Dense(), "separable_": Separable()}
    counts = {}
    for prefix, form in forms.items():
        counts[f"{prefix}params"] = plan.params(form)
        counts[f"{prefix}mult_adds"] = plan.mult_adds(form)
    return counts


def views_for(recipe: Recipe, data: ImageData, seed: int) -> ViewSettings:
    """The data set's own views, less what the recipe overrides; `seed` belongs to the study, not to the trial."""
    chosen = {key: getattr(recipe, key) for key in ("shift", "flip", "cutout") if getattr(recipe, key) is not None}
    return default_views(data.name).model_copy(update={**chosen, "seed": seed})


def make_strata(space: Space, separable_params: int) -> tuple[Stratum, ...]:
    """The strata that are searched: a listed budget's values, halvings of a budget range, else halvings of size.

    Several objectives compare all sizes in one search (stopping still compares within halvings of size).
    """
    searched = next((name for name in ("budget.params", "budget.mult_adds") if name in space.domains), None)
    if len(space.search.objectives) > 1:
        return (Stratum(ALL_SIZES, math.inf),)
    if searched is not None:
        domain = space.domains[searched]
        values = domain.grid()
        if values is not None and len(values) <= MOST_LISTED:
            return _listed(space, searched, [float(value) for value in values if value is not None], separable_params)
        low, high = domain.corners()
        return _halved_budget(space, searched, (float(low or 0), float(high or 0)), separable_params)
    return (Stratum(ALL_SIZES, math.inf),) if space.solves else halved_sizes(separable_params)


def _size_label(space: Space, name: str, value: float, separable_params: int) -> tuple[str, float]:
    what = name.removeprefix("budget.").replace("_", "-")
    if name == "budget.params" and space.budget.relative_to in (None, "separable"):
        limit = int(value * separable_params if space.budget.relative_to else value)
        return f"params <= {limit:,}", limit
    if space.budget.relative_to:
        return f"{what} <= {value:g} of {space.budget.relative_to}", math.inf
    return f"{what} <= {value:,.0f}", math.inf


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
        strata.append(Stratum(label, limit, budget=name, share=(bottom, top)))
        top = bottom
    return tuple(reversed(strata))


def halved_sizes(separable_params: int) -> tuple[Stratum, ...]:
    """From a 32nd of the separable network's size upwards, each twice the one before; the last is open."""
    edges = [separable_params / 2**power for power in range(5, -1, -1)]
    strata = [Stratum(f"params <= {int(edge):,}", edge) for edge in edges]
    return (*strata, Stratum(f"params > {separable_params:,}", math.inf))
