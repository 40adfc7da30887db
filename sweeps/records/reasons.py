"""Why things cannot be, each method's reason told once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def reasons_by_method(found: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, int]:
    """One reason for each method, that of the largest budget which it cannot meet, and for how many points it stands.

    Args:
        found: points (dotted name -> value) with their reasons.
    """
    largest: dict[Any, tuple[float, str]] = {}
    counts: dict[Any, int] = {}
    for point, reason in found:
        method = point.get("method.name", point.get("alternative"))
        counts[method] = counts.get(method, 0) + 1
        budget = _budget(point)
        if method not in largest or budget > largest[method][0]:
            largest[method] = budget, reason
    return {reason: counts[method] for method, (_, reason) in largest.items()}


def _budget(point: Mapping[str, Any]) -> float:
    limits = (value for name, value in point.items() if name.startswith("budget.") and isinstance(value, int | float))
    return max(map(float, limits), default=0.0)
