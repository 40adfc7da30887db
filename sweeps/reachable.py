"""Which strata of a space some method can meet, said before anything starts."""

from __future__ import annotations

from typing import Any

from lowrank.errors import InfeasibleError, InputError
from sweeps.space import Space
from sweeps.specification import Resolver, StepTimeError
from sweeps.strata import Stratum


def reachable_strata(space: Space, resolver: Resolver) -> tuple[tuple[Stratum, ...], list[str]]:
    """The strata that some method of the space can meet, and a line for each that none can.

    Raises InputError, with the reason, when none can be met.
    """
    if not space.solves or space.search.sampler == "grid":
        return resolver.strata, []
    reasons = {stratum: _reasons(space, resolver, stratum) for stratum in resolver.strata}
    lines = [f"{stratum.label}: {reason}" for stratum, reason in reasons.items() if reason is not None]
    if len(lines) == len(reasons):
        raise InputError(f"no method can meet the budget: {lines[-1]}")
    return tuple(stratum for stratum, reason in reasons.items() if reason is None), lines


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
        fixed[stratum.budget] = stratum.share[1]
    others = {name: domain.corners()[-1] for name, domain in space.domains.items() if name not in fixed}
    return [{**others, **fixed, **point} for point in points]
