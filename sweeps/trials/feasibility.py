"""Which strata of a space some method can meet, and what of it is impossible, said before anything starts."""

from __future__ import annotations

from typing import Any

from lowrank.errors import InfeasibleError, InputError
from sweeps.records.reasons import reasons_by_method
from sweeps.space.model import Space
from sweeps.space.strata import Stratum
from sweeps.trials.resolver import Resolver, StepTimeError


def reachable_strata(space: Space, resolver: Resolver) -> tuple[tuple[Stratum, ...], list[str]]:
    """The strata that some method of the space can meet, and a line for each that none can.

    Raises InputError, with the reason, when none can be met; of a grid, when none of its points can be trained.
    """
    if space.search.sampler == "grid":
        points, infeasible = resolver.points.grid(), _infeasible(space, resolver)
        if infeasible and len(infeasible) == len(points):
            what = "no method can meet the budget" if space.solves else "no point of the grid can be trained"
            raise InputError(f"{what}: {next(iter(reasons_by_method(infeasible)))}")
        return resolver.strata, []
    if not space.solves:
        return resolver.strata, []
    reasons = {stratum: _reasons(space, resolver, stratum) for stratum in resolver.strata}
    lines = [f"{stratum.label}: {reason}" for stratum, reason in reasons.items() if reason is not None]
    if len(lines) == len(reasons):
        raise InputError(f"no method can meet the budget: {lines[-1]}")
    return tuple(stratum for stratum, reason in reasons.items() if reason is None), lines


def infeasible_lines(space: Space, resolver: Resolver) -> list[str]:
    """A line for each method that has points which cannot be trained, at its largest budget that is out of reach."""
    return list(reasons_by_method(_infeasible(space, resolver)))


def _infeasible(space: Space, resolver: Resolver) -> list[tuple[dict[str, Any], str]]:
    """Points that cannot be, with the reason: of a grid all, else of each stratum's largest budget.

    None where a step's time is limited, for that is measured, network by network.
    """
    if "budget.step_ms" in space.domains or space.budget.step_ms is not None:
        return []
    grid = space.search.sampler == "grid"
    found = []
    for point in resolver.points.grid() if grid else _largest_points(space, resolver):
        try:
            resolver.resolve(point)
        except InfeasibleError as error:
            found.append((point, str(error)))
    return found


def _largest_points(space: Space, resolver: Resolver) -> list[dict[str, Any]]:
    return [point for stratum in resolver.strata for point in corner_points(space, stratum)] if space.solves else []


def _reasons(space: Space, resolver: Resolver, stratum: Stratum) -> str | None:
    """The first reason when every method and shape fails at the largest budget of the stratum; None if one fits."""
    first = None
    for point in corner_points(space, stratum):
        try:
            resolver.resolve(point)
        except StepTimeError as error:  # a smaller one of the stratum may be fast enough
            if stratum.budget:
                return None
            first = first or str(error)
        except InfeasibleError as error:
            first = first or str(error)
        else:
            return None
    return first


def corner_points(space: Space, stratum: Stratum) -> list[dict[str, Any]]:
    """Every method and finite shape of the space at the largest budget of the stratum, other fields at one end."""
    points: list[dict[str, Any]] = [{}]
    (_, method_domains), *_ = space.alternatives
    for key, domain in method_domains.items():
        values = domain.grid() or domain.corners()
        points = [{**point, f"method.{key}": value} for point in points for value in values]
    fixed = dict(stratum.fixed)
    if stratum.budget:
        fixed[stratum.budget] = stratum.interval[1]
    others = {name: domain.corners()[-1] for name, domain in space.domains.items() if name not in fixed}
    return [{**others, **fixed, **point} for point in points]
