"""Series: one file that describes several studies.

A file with a section `studies` is a series. Each entry is a study: the rest of the file with the entry's own `set`
(dotted names) on top, or another space named by `space`. `sweeps.study.run_series` runs them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowrank.errors import InputError, unknown
from sweeps.space import RunOptions, Space, check_options, find_space, read_yaml, resolve_content, space_from_content

ENTRY_FIELDS = ("name", "space", "set", "trials")


@dataclass(frozen=True)
class SeriesMember:
    """One study of a series."""

    name: str
    space: Space


def parse_series(content: Mapping[str, Any], name: str, options: RunOptions) -> list[SeriesMember]:
    """Read and check every study of a series.

    Args:
        content: the content of its file.
        name: the series', for the spaces of its studies.
        options: the command line, which overrides fields of every study.

    Returns:
        The studies, in their order.

    Raises:
        InputError: one of them cannot be run; the text names it.
    """
    entries = content.get("studies")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError("`studies` must be a list of sections with a `name` each")
    common = {key: value for key, value in content.items() if key != "studies"}
    members = [_member(entry, common, name, options) for entry in entries]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise InputError(f"`studies` must have names of their own, but got {', '.join(names)}")
    return members


def _member(entry: Mapping[str, Any], common: dict[str, Any], series: str, options: RunOptions) -> SeriesMember:
    for key in entry:
        if key not in ENTRY_FIELDS:
            raise unknown("field of `studies`", key, ENTRY_FIELDS)
    name, changes = entry.get("name"), entry.get("set", {})
    if not isinstance(name, str) or not isinstance(changes, Mapping):
        raise InputError(f"each of `studies` needs a `name`, and `set` must be dotted names with values; got {entry!r}")
    content = read_yaml(find_space(str(entry["space"]))) if "space" in entry else copy.deepcopy(common)
    updates = [(str(key), value) for key, value in changes.items()]
    updates += [("search.trials", entry["trials"])] if "trials" in entry else []
    try:
        content = resolve_content(content, updates, (options.set, options.field_updates()))
        space = space_from_content(series, content)
        check_options(space, options)
        return SeriesMember(name, space)
    except InputError as error:
        raise InputError(f"study {name!r}: {error}") from error


def space_from_options(options: RunOptions) -> Space:
    """Read and check the one space that `--space` names.

    Args:
        options: the command line.

    Returns:
        The space.

    Raises:
        InputError: the space cannot be used.
    """
    assert options.space is not None
    path = find_space(options.space)
    updates = options.field_updates() | ({"search.time": options.time} if options.time is not None else {})
    space = space_from_content(path.stem, resolve_content(read_yaml(path), [], (options.set, updates)))
    check_options(space, options)
    return space


def for_each_study(work: Callable[[Space, RunOptions], int], options: RunOptions) -> int:
    """Do something for a space, or for every study of a series.

    Args:
        work: takes the space and the options with the study's name; returns an exit code.
        options: the command line.

    Returns:
        The largest exit code.

    Raises:
        InputError: a space cannot be used.
    """
    assert options.space is not None
    path = find_space(options.space)
    content = read_yaml(path)
    if "studies" not in content:
        return work(space_from_options(options), options)
    codes = []
    for member in parse_series(content, path.stem, options):
        if not options.json:
            print(f"\nstudy {member.name}")
        codes.append(work(member.space, replace(options, name=member.name)))
    return max(codes)
