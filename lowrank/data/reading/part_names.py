"""Which published part a folder, a file or a row of a table belongs to, by the names that people use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from lowrank.errors import InputError

Part = Literal["training", "validation", "test"]
PARTS: dict[Part, tuple[str, ...]] = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
HELD_OUT: tuple[Part, ...] = ("validation", "test")  # without labels, images of training stand in for such a part
PART_COLUMNS = ("split", "part", "subset", "set")  # of tables
PART_NAMES = ", ".join("|".join(names) for names in PARTS.values())
_OF_NAME: dict[str, Part] = {name: part for part, names in PARTS.items() for name in names}
_FILE = re.compile(rf"({'|'.join(_OF_NAME)})(?:[-_.]?\d.*)?", re.IGNORECASE)


def part_of(name: str) -> Part | None:
    """Return the part of a name.

    Args:
        name: of a folder, or a value in a table; in any case.

    Returns:
        The part; None for another name.
    """
    return _OF_NAME.get(name.strip().casefold())


def part_of_file(stem: str) -> Part | None:
    """Return the part of a file's name: such a name alone, or with a number after it.

    Args:
        stem: the name without its suffix, such as `train-00000-of-00002`.

    Returns:
        The part; None for another name, such as `train_unlabelled`.
    """
    match = _FILE.fullmatch(stem)
    return None if match is None else part_of(match[1])


def check_one_name(what: str, names: Iterable[str], part: Part) -> None:
    """Refuse a part that is there under several names, such as `val` and `dev`.

    Args:
        what: the data set, for the message.
        names: under which the part was found.
        part: the part.

    Raises:
        InputError: there are several names.
    """
    several = sorted(set(names))
    if len(several) > 1:
        raise InputError(f"{what}: a {part} part must have one name, but there are {', '.join(several)}; keep one")
