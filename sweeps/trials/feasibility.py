"""Find the strata and methods of a space that no training can meet, before anything starts."""

from __future__ import annotations

import math
import time

from lowrank.errors import InfeasibleError, InputError
from sweeps.records import reasons_by_method
from sweeps.space import REFERENCES, Space, Stratum, Value, alternative_names
from sweeps.trials.resolver import Resolver, StepTimeError

MEASURED_SECONDS = 5.0  # in which one of a stratum's networks must prove fast enough
MAX_SHAPES = 200  # of each method that are solved at a stratum's largest budget


def check_replaceable(space: Space, resolver: Resolver) -> None:
    """Check that a method of the space has a layer to replace.

    Args:
        space: the space.
        resolver: of the space.

    Raises:
        InputError: no network of the space has such a layer; the text says what would change that.
    """
    names = {str(name) for alternative in space.alternatives for name in alternative_names(alternative)}
    if names <= set(REFERENCES):
        return
    reasons = []
    for network in space.corner_networks():
        reason = resolver.plan(network).nothing_replaced
        if not reason:
            return
        reasons.append(reason)
    raise InputError(reasons[0])


def reachable_strata(space: Space, resolver: Resolver) -> tuple[tuple[Stratum, ...], dict[str, str]]:
    """Find the strata that some method of the space can meet.

    Args:
        space: the space.
        resolver: of the space.

    Returns:
        These strata, and for the label of each of the others why no method can meet it.

    Raises:
        InputError: no layer can be replaced, no stratum can be met, or no point of a grid can be trained; the text
            says why.
    """
    check_replaceable(space, resolver)
    if space.search.sampler == "grid":
        points, infeasible = resolver.points.grid(), _infeasible(space, resolver)
        if infeasible and len(infeasible) == len(points):
            problem = "no method can meet the budget" if space.has_budget else "no point of the grid can be trained"
            raise InputError(f"{problem}: {next(iter(reasons_by_method(infeasible)))}")
        return resolver.strata, {}
    if not space.has_budget:
        return resolver.strata, {}
    reasons = {stratum: _reason(space, resolver, stratum) for stratum in resolver.strata}
    unreachable = {stratum.label: reason for stratum, reason in reasons.items() if reason is not None}
    if len(unreachable) == len(reasons):
        label, reason = list(unreachable.items())[-1]
        raise InputError(f"no method can meet the budget: {label}: {reason}")
    return tuple(stratum for stratum, reason in reasons.items() if reason is None), unreachable


def infeasible_lines(space: Space, resolver: Resolver) -> list[str]:
    """Say why points of the space cannot be trained.

    Args:
        space: the space.
        resolver: of the space.

    Returns:
        A line for each method with such points: the reason at the largest budget that it cannot meet.
    """
    return list(reasons_by_method(_infeasible(space, resolver)))


def _infeasible(space: Space, resolver: Resolver) -> list[tuple[dict[str, Value], str]]:
    """The points that cannot be trained, each with the reason: of a grid all, else at each stratum's largest budget.

    Empty where a step's time is limited, which would have to be measured for each network.
    """
    if "budget.step_ms" in space.domains or space.budget.step_ms is not None:
        return []
    grid = space.search.sampler == "grid"
    infeasible = []
    for point in resolver.points.grid() if grid else _largest_points(space, resolver):
        try:
            resolver.resolve(point)
        except InfeasibleError as error:
            infeasible.append((point, str(error)))
    return infeasible


def _largest_points(space: Space, resolver: Resolver) -> list[dict[str, Value]]:
    return [point for stratum in resolver.strata for point in corner_points(space, stratum)] if space.has_budget else []


def _reason(space: Space, resolver: Resolver, stratum: Stratum) -> str | None:
    """The reason when every method and shape fails at the largest budget of the stratum; None if one fits.

    It is that of the smallest network, where sizes are known: a budget from its size on would do.
    """
    first, start = None, time.monotonic()
    smallest: InfeasibleError | None = None
    for point in corner_points(space, stratum):
        try:
            resolver.resolve(point)
        except StepTimeError as error:  # a smaller network of the stratum may be fast enough
            if stratum.budget:
                return None
            first = first or str(error)
            if time.monotonic() - start > MEASURED_SECONDS:
                return first
        except InfeasibleError as error:
            first = first or str(error)
            if error.smallest is not None and error.smallest < _size(smallest):
                smallest = error
        else:
            return None
    return first if smallest is None else str(smallest)


def _size(error: InfeasibleError | None) -> float:
    return math.inf if error is None or error.smallest is None else error.smallest


def corner_points(space: Space, stratum: Stratum) -> list[dict[str, Value]]:
    """List the points of a stratum with the largest networks.

    Args:
        space: the space.
        stratum: one of its strata.

    Returns:
        Every method and finite shape of the space at the stratum's largest budget, other fields at their last value;
        of very many shapes some that are spread evenly over them.
    """
    points: list[dict[str, Value]] = [{}]
    (_, method_domains), *_ = space.alternatives
    limit = MAX_SHAPES
    shapes = [domain for key, domain in method_domains.items() if key != "name"]
    while limit > 2 and math.prod(min(limit, domain.count() or 2) for domain in shapes) > MAX_SHAPES:
        limit -= 1
    for key, domain in method_domains.items():
        values = domain.corners() if key == "name" else domain.sample(limit)
        points = [{**point, f"method.{key}": value} for point in points for value in values]
    fixed = dict(stratum.fixed)
    if stratum.budget:
        fixed[stratum.budget] = stratum.interval[1]
    others = {name: domain.corners()[-1] for name, domain in space.domains.items() if name not in fixed}
    return [{**others, **fixed, **point} for point in points]
