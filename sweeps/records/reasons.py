"""Reasons why points of a space cannot be trained, one for each method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def reasons_by_method(infeasible: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, int]:
    """Choose for each method the reason at the largest budget that it cannot meet.

    Args:
        infeasible: points (dotted name -> value), each with the reason why it cannot be trained.

    Returns:
        For each reason, how many points of the method it stands for.
    """
    largest: dict[Any, tuple[float, str]] = {}
    counts: dict[Any, int] = {}
    for point, reason in infeasible:
        method = point.get("method.name", point.get("alternative"))
        counts[method] = counts.get(method, 0) + 1
        budget = _budget(point)
        if method not in largest or budget > largest[method][0]:
            largest[method] = budget, reason
    return {reason: counts[method] for method, (_, reason) in largest.items()}


def _budget(point: Mapping[str, Any]) -> float:
    limits = (value for name, value in point.items() if name.startswith("budget.") and isinstance(value, int | float))
    return max(map(float, limits), default=0.0)
