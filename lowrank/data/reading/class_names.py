"""The order of class names that are given as texts."""

from __future__ import annotations

from collections.abc import Iterable


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: by value where all are whole numbers, else alphabetically.

    Args:
        names: in any order.

    Returns:
        Each name once.
    """
    unique = set(names)
    if all(name.lstrip("-").isdecimal() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))
