"""Expand the short forms of a space file: windows of a budget, initial weights, overrides for one data set.

Each function takes and returns plain content. What a typed setting checks later is not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.data import absolute_data_name, parse_data_name
from lowrank.errors import InputError, show_value
from sweeps.space.domains import DOMAIN_KEYS, is_domain
from sweeps.space.files import SECTIONS
from sweeps.space.settings import ALLOCATIONS_BY_ERROR, LIMITS

BY_DATA = "by_data"
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


def apply_data_overrides(content: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """Replace the section `by_data` by its fields for the space's own data set.

    With `by_data: {digits: {network.width: 0.5}}` a question about a large data set can be tried on a small one in
    minutes.

    Args:
        content: a space; its sections may be changed.

    Returns:
        The space without `by_data`, and the dotted names of fields that a section set as a whole leaves out.

    Raises:
        InputError: `by_data` has another form, names no data set, or a name leads through a field that is no section.
    """
    overrides = content.get(BY_DATA) or {}
    if not isinstance(overrides, Mapping) or not all(isinstance(fields, Mapping) for fields in overrides.values()):
        raise InputError(
            "`by_data` must be a section of data sets, each with dotted names: {digits: {network.width: 0.5}}"
        )
    data = content.get("data", "digits")
    name = data.get("name", "digits") if isinstance(data, Mapping) else data
    merged = {key: value for key, value in content.items() if key != BY_DATA}
    lost: list[str] = []
    for key, fields in overrides.items():
        try:
            parse_data_name(str(key))
        except InputError as error:
            raise InputError(f"`by_data`: {error}") from error
        if absolute_data_name(str(key)) == absolute_data_name(str(name)):
            for dotted, value in fields.items():
                lost += set_field(merged, str(dotted), value)
    return merged, lost


def set_field(
    content: dict[str, object], dotted: str, value: Any, named: tuple[str, ...] = ("data", "network", "teacher")
) -> list[str]:
    """Set a field by its dotted name, in place.

    Args:
        content: a space.
        dotted: e.g. `train.lr`; sections that are missing or empty are made. `by_data.digits.train.lr` sets the field
            for one data set alone.
        value: the new value.
        named: sections that may be written as a name alone, e.g. `data: digits`.

    Returns:
        Dotted names of the fields that no longer hold, because the value replaces the section in which they stood.

    Raises:
        InputError: the name leads through a field that is no section.
    """
    if is_data_override(dotted):
        _set_for_data(content, dotted, value)
        return []
    *parents, field = dotted.split(".")
    for index, part in enumerate(parents):
        if isinstance(content.get(part), str) and part in named:
            content[part] = {"name": content[part]}
        follows = dotted.split(".")[index + 1]
        if index == 0 and part == "start" and _is_short_start(content.get(part)) and follows not in DOMAIN_KEYS:
            content[part] = {"how": content[part]}
        if content.get(part) is None:
            content[part] = {}
        section = content[part]
        if not isinstance(section, dict):
            raise InputError(f"cannot set `{dotted[:80]}`: `{part[:60]}` is not a section with fields")
        content = section
    lost = _lost_fields(dotted, content.get(field), value)
    content[field] = value
    return lost


def is_data_override(dotted: str) -> bool:
    """Tell whether a dotted name sets something for one data set alone.

    Args:
        dotted: e.g. `by_data.digits.train.lr`.

    Returns:
        True for a name within `by_data` and for `by_data` itself.
    """
    return dotted.partition(".")[0] == BY_DATA


def has_field(content: Mapping[str, Any], dotted: str) -> bool:
    """Tell whether a space has a field.

    Args:
        content: a space.
        dotted: the field's dotted name.

    Returns:
        True if it is there, with whatever value.
    """
    value: Any = content
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _set_for_data(content: dict[str, object], dotted: str, value: Any) -> None:
    """Set fields for one data set alone, after those that are set there; the name of a data set may have dots."""
    parts = dotted.split(".")[1:]
    if value is None and len(parts) < 2:  # nothing is set for the data set any more, or for any
        overrides = content.get(BY_DATA) if parts else content
        if isinstance(overrides, dict):  # `apply_data_overrides` refuses all else
            overrides.pop(dotted.rpartition(".")[2], None)
        return
    start = next((index for index, part in enumerate(parts) if index and part in SECTIONS), len(parts))
    name, field = ".".join(parts[:start]), ".".join(parts[start:])
    if not field:
        if not isinstance(value, Mapping):
            raise InputError(
                f"cannot set `{dotted[:80]}`: a field must follow the data set's name, such as "
                f"{BY_DATA}.digits.train.epochs"
            )
        for key, part in value.items():
            _set_for_data(content, f"{dotted}.{key}", part)
        return
    overrides = content.get(BY_DATA) or {}
    fields = overrides.get(name) or {} if isinstance(overrides, dict) else None
    if not isinstance(overrides, dict) or not isinstance(fields, dict):
        raise InputError(f"cannot set `{dotted[:80]}`: `{BY_DATA}` must be a section of data sets, each with fields")
    fields.pop(field, None)  # what is set last is applied last
    content[BY_DATA] = {**overrides, name: {**fields, field: value}}


def _lost_fields(dotted: str, before: Any, value: Any) -> list[str]:
    """Dotted names of the fields of a section that a value in its place leaves out; null takes it out openly."""
    if not isinstance(before, Mapping) or is_domain(before) or before.keys() <= WINDOW_KEYS or value is None:
        return []
    if isinstance(value, Mapping) and not is_domain(value):
        names = set(value)
    else:  # `network: vgg16` is its name, `start: dense` is how
        names = {"how"} if dotted == "start" else {"name"}
    return [f"{dotted}.{key}" for key in before if key not in names]
