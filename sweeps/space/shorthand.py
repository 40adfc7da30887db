"""Expand the short forms of a space file: windows of a budget, initial weights, overrides for one data set.

Each function takes and returns plain content. What a typed setting checks later is not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.errors import InputError, show_value
from sweeps.space.domains import is_domain
from sweeps.space.settings import ALLOCATIONS_BY_ERROR, LIMITS

WINDOW_KEYS = {"min", "max"}
DEFAULT_SHARES = {"log_uniform": [0.5, 2.0]}  # of an allocation by stage or layer that names none


def expand_shorthand(content: Mapping[str, Any]) -> dict[str, object]:
    """Write the windows of a budget and the section `start` in their long form.

    Args:
        content: a space; not changed.

    Returns:
        The space in its long form.

    Raises:
        InputError: a window has other keys than `min` and `max`.
    """
    expanded = dict(content)
    if isinstance(expanded.get("budget"), Mapping):
        expanded["budget"] = _expand_budget(expanded["budget"])
    start = expanded.get("start")
    if _is_short_start(start):
        expanded["start"] = {"how": start}
    return expanded


def _is_short_start(start: Any) -> bool:
    return isinstance(start, str) or is_domain(start)


def set_start_weights(content: dict[str, object], path: str) -> None:
    """Let trials start from the weights of a file, in place; where the space searches how to start, it still does.

    Args:
        content: a space.
        path: the file.

    Raises:
        InputError: `start` is no section with fields.
    """
    start = content.get("start") or {}
    if _is_short_start(start):
        start = {"how": start}
    if not isinstance(start, Mapping):
        raise InputError(f"`start` must be a section with fields, but got {show_value(start)}")
    how = start.get("how", "scratch")
    content["start"] = {**start, "how": "dense" if how == "scratch" else how, "weights": path}


def _expand_budget(budget: Mapping[str, Any]) -> dict[str, object]:
    """`params: {min: A, max: B}` as `params: B, params_min: A`; an uneven allocation with its default shares."""
    expanded: dict[str, object] = {}
    for key, value in budget.items():
        if key in LIMITS and isinstance(value, Mapping) and not is_domain(value):
            if not value or not value.keys() <= WINDOW_KEYS or (key == "step_ms" and "min" in value):
                form = "{max: B}" if key == "step_ms" else "{min: A, max: B}"
                raise InputError(
                    f"`budget.{key}` must be a number, a domain or {form}, but got {show_value(dict(value))}"
                )
            expanded[key] = value.get("max")
            if "min" in value:
                expanded[f"{key}_min"] = value["min"]
        else:
            expanded[key] = value
    if _is_in_ratios(expanded.get("allocation", "even")):
        expanded.setdefault("shares", dict(DEFAULT_SHARES))
    return expanded


def _is_in_ratios(allocation: Any) -> bool:
    """Whether an allocation, or a choice of some, has parts whose ratios are drawn."""
    choices = allocation.get("choice") if is_domain(allocation) else [allocation]
    return not isinstance(choices, list) or any(value not in ("even", *ALLOCATIONS_BY_ERROR) for value in choices)


def apply_data_overrides(content: dict[str, object]) -> dict[str, object]:
    """Replace the section `by_data` by its fields for the space's own data set.

    With `by_data: {digits: {network.width: 0.5}}` a question about a large data set can be tried on a small one in
    minutes.

    Args:
        content: a space; its sections may be changed.

    Returns:
        The space without `by_data`.

    Raises:
        InputError: `by_data` has another form, or a name leads through a field that is no section.
    """
    overrides = content.get("by_data", {})
    if not isinstance(overrides, Mapping) or not all(isinstance(fields, Mapping) for fields in overrides.values()):
        raise InputError(
            "`by_data` must be a section of data sets, each with dotted names: {digits: {network.width: 0.5}}"
        )
    data = content.get("data", "digits")
    name = data.get("name", "digits") if isinstance(data, Mapping) else data
    merged = {key: value for key, value in content.items() if key != "by_data"}
    for dotted, value in overrides.get(str(name), {}).items():
        set_field(merged, str(dotted), value)
    return merged


def set_field(
    content: dict[str, object], dotted: str, value: Any, named: tuple[str, ...] = ("data", "network", "teacher")
) -> None:
    """Set a field by its dotted name, in place.

    Args:
        content: a space.
        dotted: e.g. `train.lr`; sections that are missing are made.
        value: the new value.
        named: sections that may be written as a name alone, e.g. `data: digits`.

    Raises:
        InputError: the name leads through a field that is no section.
    """
    *parents, field = dotted.split(".")
    for part in parents:
        if isinstance(content.get(part), str) and part in named:
            content[part] = {"name": content[part]}
        section = content.setdefault(part, {})
        if not isinstance(section, dict):
            raise InputError(f"cannot set `{dotted[:80]}`: `{part[:60]}` is not a section with fields")
        content = section
    content[field] = value
