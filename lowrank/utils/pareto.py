"""Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def non_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Find the points that no other point dominates.

    Every objective is minimised. A point dominates another if it is no worse in all objectives and better in at least
    one. Of equal points the first stays. Infinite objectives are compared as numbers; an empty input gives an empty
    front. Takes O(n log n) comparisons for one or two objectives, O(n log n + n * front) for more.

    Args:
        points: one tuple of objectives for each point, all of the same length.

    Returns:
        Their indices in increasing order.

    Raises:
        ValueError: an objective is None or NaN, for which no order exists, or the lengths differ.
    """
    for index, point in enumerate(points):
        if any(value is None or math.isnan(value) for value in point):
            raise ValueError(f"every objective must be a number, but point {index} is {point}; leave it out")
        if len(point) != len(points[0]):
            raise ValueError(f"points must have {len(points[0])} objectives each, but point {index} is {point}")
    order = sorted(range(len(points)), key=lambda i: (tuple(points[i]), i))
    return sorted(_of_two(points, order) if points and len(points[0]) <= 2 else _of_many(points, order))


def _of_two(points: Sequence[tuple[float, ...]], order: Sequence[int]) -> list[int]:
    """In lexicographic order the first objective never falls, so a point needs a lower second one than all before."""
    front: list[int] = []
    for index in order:
        if not front or points[index][1:] < points[front[-1]][1:]:
            front.append(index)
    return front


def _of_many(points: Sequence[tuple[float, ...]], order: Sequence[int]) -> list[int]:
    front: list[int] = []
    for index in order:
        # In lexicographic order nothing that comes later can dominate, and no worse in all means dominated or equal.
        if not any(_no_worse(points[other], points[index]) for other in front):
            front.append(index)
    return front


def _no_worse(point: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(point, other, strict=True))
