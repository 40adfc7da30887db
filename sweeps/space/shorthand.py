"""Short forms of a space file, written out: windows of a budget, what a trial starts from, settings for one data set.

Each function takes plain content and gives plain content; nothing is checked here that a typed setting checks later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.errors import InputError
from sweeps.space.domains import is_domain
from sweeps.space.settings import LIMITS

WINDOW_KEYS = {"min", "max"}
DEFAULT_SHARES = {"log_uniform": [0.5, 2.0]}  # of an allocation by stage or layer that does not say


def expand_shorthand(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a space file with windows and the start in their long form; raises InputError."""
    found = dict(content)
    if isinstance(found.get("budget"), Mapping):
        found["budget"] = _windows(found["budget"])
    start = found.get("start")
    if isinstance(start, str) or is_domain(start):
        found["start"] = {"how": start}
    return found


def _windows(budget: Mapping[str, Any]) -> dict[str, Any]:
    """`params: {min: A, max: B}` as `params: B, params_min: A`."""
    found: dict[str, Any] = {}
    for key, value in budget.items():
        if key in LIMITS and isinstance(value, Mapping) and not is_domain(value):
            if not value or not value.keys() <= WINDOW_KEYS or (key == "step_ms" and "min" in value):
                form = "{max: B}" if key == "step_ms" else "{min: A, max: B}"
                raise InputError(f"`budget.{key}` must be a number, a domain or {form}, but got {dict(value)!r}")
            found[key] = value.get("max")
            if "min" in value:
                found[f"{key}_min"] = value["min"]
        else:
            found[key] = value
    if found.get("allocation", "even") != "even":
        found.setdefault("shares", dict(DEFAULT_SHARES))
    return found


def apply_data_overrides(content: dict[str, Any]) -> dict[str, Any]:
    """The content with what its section `by_data` says for its own data set, in place of that section.

    Raises InputError for a section of another form.
    `by_data: {digits: {network.width: 0.5}}` holds for the digits alone: a question asked in earnest of one set may be
    asked of a small one in minutes.
    """
    sections = content.get("by_data", {})
    if not isinstance(sections, Mapping) or not all(isinstance(fields, Mapping) for fields in sections.values()):
        raise InputError(
            "`by_data` must be a section of data sets, each with dotted names: {digits: {network.width: 0.5}}"
        )
    data = content.get("data", "digits")
    name = data.get("name", "digits") if isinstance(data, Mapping) else data
    rest = {key: value for key, value in content.items() if key != "by_data"}
    for dotted, value in sections.get(str(name), {}).items():
        set_field(rest, str(dotted), value)
    return rest


def set_field(
    content: dict[str, Any], dotted: str, value: Any, named: tuple[str, ...] = ("data", "network", "teacher")
) -> None:
    """Set a field by its dotted name, in place; raises InputError where the way leads through a plain value."""
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(content.get(part), str) and part in named:
            content[part] = {"name": content[part]}
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise InputError(f"cannot set `{dotted}`: `{part}` is not a section with fields")
    content[last] = value
