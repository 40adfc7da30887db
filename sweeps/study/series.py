"""Series: one file that describes several studies.

A file with a section `studies` is a series. Each entry of that section describes one study. Its space is the rest of
the file, or another file that the entry names under `space`; the fields under the entry's `set` (dotted names) replace
those of the space. `sweeps.study.run_series` runs the studies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrank.errors import InputError, show_choices, show_value, unknown
from sweeps.space import RunOptions, Space, check_options, find_space, read_yaml, resolve_content, space_from_content
from sweeps.utils import check_plain_name

ENTRY_FIELDS = ("name", "space", "set", "trials")


@dataclass(frozen=True)
class SeriesMember:
    """One study of a series: its name in the series and its space."""

    name: str
    space: Space


def parse_series(
    content: Mapping[str, Any], name: str, options: RunOptions, typed: RunOptions | None = None,
    base: Path = Path(),
) -> list[SeriesMember]:  # fmt: skip
    """Check the content of a series and make the space of each study.

    Args:
        content: the content of the series' file.
        name: the name of the series, which the spaces of its studies get.
        options: the command line, which overrides fields of every study; of a series that is resumed as it was stored.
        typed: what the user has typed now, which alone gives permissions; None for `options`.
        base: where relative paths of content and options begin.

    Returns:
        The studies, in the order of the file.

    Raises:
        InputError: a study cannot be run; the message names it.
    """
    entries = content.get("studies")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"`studies` must be a list of sections with a `name` each, but got {show_value(entries)}")
    rest = {key: value for key, value in content.items() if key != "studies"}
    members = [_parse_member(entry, rest, name, options, typed or options, base) for entry in entries]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise InputError(f"the names in `studies` must differ, but got {show_choices(names)}")
    return members


def _parse_member(
    entry: Mapping[str, Any], rest: dict[str, object], series: str, options: RunOptions, typed: RunOptions, base: Path
) -> SeriesMember:  # fmt: skip
    for key in entry:
        if key not in ENTRY_FIELDS:
            raise unknown("field of `studies`", key, ENTRY_FIELDS)
    name, changes = entry.get("name"), entry.get("set", {})
    if not isinstance(name, str) or not isinstance(changes, Mapping):
        raise InputError(
            "each of `studies` needs a `name`, and `set` must map dotted names to values, but got "
            f"{show_value(dict(entry))}"
        )
    check_plain_name(name, "the `name` of a study in `studies`")
    updates = [(str(key), value) for key, value in changes.items()]
    updates += [("search.trials", entry["trials"])] if "trials" in entry else []
    try:
        with chdir(base):  # which makes relative paths absolute
            content = read_yaml(find_space(str(entry["space"]))) if "space" in entry else copy.deepcopy(rest)
            content = resolve_content(content, updates, (options.set, options.field_updates()))
            space = space_from_content(series, content)
        check_options(space, typed)
        return SeriesMember(name, space)
    except InputError as error:
        raise InputError(f"study {name!r}: {error}") from error


def space_from_options(options: RunOptions) -> Space:
    """Read and check the single space that `--space` names.

    `--time` becomes a field of the space. In a series it is a limit for all studies together, which
    `sweeps.study.run_series` divides.

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


def for_each_study(action: Callable[[Space, RunOptions], int], options: RunOptions) -> int:
    """Call a function for the space of `--space`, or for every study of a series.

    Args:
        action: called with a space and the options, in a series with the study's name; returns an exit code.
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
        return action(space_from_options(options), options)
    codes = []
    for member in parse_series(content, path.stem, options):
        if not options.json:  # with --json, the output must be JSON alone
            print(f"\nstudy {member.name}")
        codes.append(action(member.space, replace(options, name=member.name)))
    return max(codes)
