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
from sweeps.records import Role
from sweeps.space import Space, method_at

REFERENCE_STRATUM = "reference"
Point = Mapping[str, Value]  # dotted name (or "alternative") -> value


@dataclass(frozen=True)
class Trial:
    """A specification that can be trained, with its exact counts."""

    trial_id: str
    role: Role
    stratum: str
    point: dict[str, Value]
    specification: dict[str, Any]  # sections network, method, train, views, data, seed: all that a worker needs
    counts: dict[str, int]


@dataclass(frozen=True)
class Stratum:
    """A range of sizes within which trials are compared: more than `above`, at most `limit` parameters."""

    label: str
    limit: float
    above: float = 0.0
    fixed: tuple[tuple[str, Value], ...] = ()  # budget values that every proposal in this stratum has
    share: tuple[float, float] | None = None  # the part of a budget range that belongs to it


class Resolver:
    """Resolves points of one space on one data set; makes no tensor."""

    def __init__(self, space: Space, data: ImageData):
        self.space, self.data = space, data
        self.image_shape, self.classes = data.image_shape, len(data.classes)
        self.strata = make_strata(space, self.separable_params)

    def plan(self, network: NetworkSettings) -> NetworkPlan:
        """The network's sites for this data set's images and classes."""
        return network_plan(network, self.image_shape, self.classes)

    @cached_property
    def separable_params(self) -> int:
        """Parameters of the separable form of the space's own network."""
        return self.plan(self.space.network).params(Separable())

    def resolve(self, point: Point, stratum: Stratum | None = None) -> Trial:
        """The trial at `point`; raises InfeasibleError with the reason when its limits cannot be met."""
        network = NetworkSettings(**{**self.space.network.model_dump(), **_under(point, "network")})
        method = method_at(self.space.alternatives[int(point.get("alternative", 0))], _under(point, "method"))
        plan = self.plan(network)
        budget = self._budget(point, plan)
        if self.space.solves:
            method = solve(plan, method, budget)
        elif (reason := plan.infeasible(method)) is not None:
            raise InfeasibleError(reason)
        recipe = self.space.recipe(_under(point, "train"))
        return self._trial(plan, network, method, recipe, point, Role.SEARCH, stratum)

    def reference(self, name: str) -> Trial:
        """A reference network (a method of one size) under the space's own recipe, searched fields at their defaults.

        Its decay is never scaled: it has no factors.
        """
        kind = {"dense": Dense, "separable": Separable}[name]
        plan = self.plan(self.space.network)
        recipe = self.space.recipe({})
        return self._trial(plan, self.space.network, kind(), recipe, {"method.name": name}, Role.REFERENCE, None)

    def _trial(
        self, plan: NetworkPlan, network: NetworkSettings, method: Method, recipe: Recipe, point: Point,
        role: Role, stratum: Stratum | None,
    ) -> Trial:  # fmt: skip
        counts = count(plan, method)
        views = views_for(recipe, self.data, self.space.search.seed)
        specification = {
            "network": network.model_dump(mode="json"), "method": method.model_dump(mode="json"),
            "train": recipe.model_dump(mode="json"), "views": views.model_dump(mode="json"),
            "data": {**self.data.settings.model_dump(mode="json"), "fingerprint": self.data.fingerprint},
            "seed": self.space.search.seed,
        }  # fmt: skip
        # What is built and trained, wherever the images lie
        identity = {**specification, "method": plan.signature(method), "data": self.data.fingerprint}
        trial_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        label = REFERENCE_STRATUM
        if role is Role.SEARCH:
            label = (stratum or stratum_of(self.strata, counts["params"])).label
        return Trial(trial_id, role, label, dict(point), specification, counts)

    def _budget(self, point: Point, plan: NetworkPlan) -> Budget:
        values = {**self.space.budget.model_dump(), **_under(point, "budget")}
        relative = {"dense": Dense(), "separable": Separable()}.get(values["relative_to"] or "")

        def limit(name: str, whole: int) -> int | None:
            value = values[name]
            return None if value is None else int(value * whole if relative else value)

        base = relative or Separable()
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
    """The strata of size: a listed budget's values, halvings of a budget range, else halvings of the separable size.

    Several objectives compare all sizes at once, so they have a single stratum.
    """
    if len(space.search.objectives) > 1:
        return (Stratum("all sizes", math.inf),)
    for what in ("params", "mult_adds"):
        name = f"budget.{what}"
        domain = space.domains.get(name)
        if domain is None:
            continue
        values = domain.grid() if space.search.sampler == "grid" or hasattr(domain, "values") else None
        if values is not None:
            return _listed(space, name, [float(value) for value in values], separable_params)
        low, high = (float(value) for value in domain.corners())
        return _halved_budget(space, name, low, high, separable_params)
    if space.solves:
        return (Stratum("all within the budget", math.inf),)
    return _halved_sizes(separable_params)


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


def _halved_budget(space: Space, name: str, low: float, high: float, separable_params: int) -> tuple[Stratum, ...]:
    strata, top = [], high
    while True:
        bottom = max(low, top / 2)
        label, limit = _size_label(space, name, top, separable_params)
        strata.append(Stratum(label, limit, share=(bottom, top)))
        if bottom <= low * 1.0001:
            return tuple(reversed(strata))
        top = bottom


def _halved_sizes(separable_params: int) -> tuple[Stratum, ...]:
    edges = [separable_params / 2**power for power in range(5, -1, -1)]
    strata = [
        Stratum(f"params <= {int(edge):,}", edge, above) for above, edge in zip([0.0, *edges], edges, strict=False)
    ]
    return (*strata, Stratum(f"params > {separable_params:,}", math.inf, edges[-1]))


def stratum_of(strata: tuple[Stratum, ...], params: int) -> Stratum:
    """The stratum that holds a network of this size, for spaces whose sizes are not proposed."""
    return next(stratum for stratum in strata if params <= stratum.limit)
