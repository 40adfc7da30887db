"""Find the strata and methods of a space that no training can meet, before anything starts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

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
            says why, of several methods for the one with the smallest network.
    """
    check_replaceable(space, resolver)
    if space.search.sampler == "grid":
        points, infeasible = resolver.points.grid(), _infeasible(space, resolver)
        if infeasible and len(infeasible) == len(points):
            problem = "no method can meet the budget" if space.has_budget else "no point of the grid can be trained"
            sizes = {str(error): _size(error) for _, error in infeasible}
            by_method = reasons_by_method([(point, str(error)) for point, error in infeasible])
            raise InputError(f"{problem}: {min(by_method, key=lambda reason: sizes[reason])}")
        return resolver.strata, {}
    if not space.has_budget:
        return resolver.strata, {}
    reasons = {stratum: _reason(space, resolver, stratum) for stratum in resolver.strata}
    unreachable = {stratum.label: reason for stratum, reason in reasons.items() if reason is not None}
    if len(unreachable) == len(reasons):
        label, reason = list(unreachable.items())[-1]
        raise InputError(f"no method can meet the budget: {label}: {reason}")
    return tuple(stratum for stratum, reason in reasons.items() if reason is None), unreachable


def left_out_lines(space: Space, resolver: Resolver, unreachable: Mapping[str, str]) -> list[str]:
    """Say what of a space cannot be trained.

    Args:
        space: the space.
        resolver: of the space.
        unreachable: label of each stratum that no method can meet, and why, as `reachable_strata` returns them.

    Returns:
        A line for all budgets that no method can meet, with the reason at the largest; then, of the other budgets, a
        line for each method with points that cannot be trained and for each reference that cannot: the reason at the
        largest budget that it cannot meet.
    """
    infeasible = _infeasible(space, resolver)
    reasons = dict(unreachable)
    if space.search.sampler == "grid" and infeasible:
        points = resolver.points.grid()
        for stratum in resolver.strata:
            errors = [error for point, error in infeasible if stratum.contains(point)]
            if errors and len(errors) == sum(map(stratum.contains, points)):
                reasons[stratum.label] = str(min(errors, key=_size))
    unmet = [stratum for stratum in resolver.strata if stratum.label in reasons]
    others = [(point, str(error)) for point, error in infeasible if not any(s.contains(point) for s in unmet)]
    lines = [f"left out: {line}" for line in reasons_by_method(others)]
    if reasons:
        lines.insert(0, f"cannot be met, left out: {'; '.join(reasons)}: {list(reasons.values())[-1]}")
    references: dict[str, dict[str, str]] = {}
    for (name, label), reason in resolver.impossible_references().items():
        if label not in reasons:
            references.setdefault(name, {})[label] = reason
    for name, by_label in references.items():
        lines.append(f"left out: the reference {name} at {'; '.join(by_label)}: {list(by_label.values())[-1]}")
    return lines


def _infeasible(space: Space, resolver: Resolver) -> list[tuple[dict[str, Value], InfeasibleError]]:
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
            infeasible.append((point, error))
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
