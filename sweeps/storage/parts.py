"""How a file that only grows is stored: in parts whose names say where they begin and which driver wrote them.

The number of the driver is a fencing token: each driver that takes a study over has a higher one. What a driver writes
after it has lost the study lies behind bytes of a higher number and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from lowrank.errors import InputError

PARTS_SUFFIX = ".parts"  # of the folder that holds a growing file's parts
_NAME = re.compile(r"(\d{15})(?:-(\d+))?")


class PartsError(InputError):
    """The parts of a file do not make the file that was stored."""


@dataclass(frozen=True)
class Part:
    """One stored object of a growing file.

    Attributes:
        name: of the object.
        offset: the byte of the file at which it begins.
        driver: the number of the driver that wrote it; 0 for a version of the project that knew no such numbers.
        size: bytes of it that count, from its beginning.
    """

    name: str
    offset: int
    driver: int
    size: int

    @property
    def end(self) -> int:
        """Return the byte behind its last one."""
        return self.offset + self.size


def part_name(file: str, offset: int, driver: int) -> str:
    """Name a part of a growing file.

    Args:
        file: the file's name.
        offset: the byte at which the part begins.
        driver: the number of the driver that writes it.

    Returns:
        The object's name; sorted, names are in the order of the file.
    """
    return f"{file}{PARTS_SUFFIX}/{offset:015d}-{driver:06d}"


def join_order(sizes: Mapping[str, int]) -> list[Part]:
    """Put the parts of a file in order, without what a driver wrote after it had lost the study.

    Args:
        sizes: of the objects in bytes, by name.

    Returns:
        The parts that make the file; the last of a driver that was superseded may be cut.

    Raises:
        PartsError: a part is missing, there twice, or has a name that no part has.
    """
    parts = sorted((_parse(name, size) for name, size in sizes.items()), key=lambda part: (-part.driver, part.offset))
    valid: list[Part] = []
    limit: int | None = None  # where the bytes of later drivers begin
    for _, group in groupby(parts, key=lambda part: part.driver):
        of_driver = list(group)
        for part in of_driver:
            size = part.size if limit is None else min(part.size, limit - part.offset)
            if size > 0:
                valid.append(Part(part.name, part.offset, part.driver, size))
        limit = of_driver[0].offset if limit is None else min(limit, of_driver[0].offset)
    valid.sort(key=lambda part: part.offset)
    end = 0
    for part in valid:
        if part.offset != end:
            what = "a part before it is missing" if part.offset > end else "a part is there twice"
            raise PartsError(f"{part.name} begins at byte {part.offset:,} where byte {end:,} is next: {what}")
        end = part.end
    return valid


def highest_driver(names: Iterable[str]) -> int:
    """Find the last driver that has stored a part.

    Args:
        names: of the parts of a file.

    Returns:
        Its number; 0 where there is none.

    Raises:
        PartsError: a name is not that of a part.
    """
    return max((_parse(name, 0).driver for name in names), default=0)


def _parse(name: str, size: int) -> Part:
    match = _NAME.fullmatch(name.rpartition("/")[2])
    if match is None:
        raise PartsError(f"{name} is not the name of a part")
    return Part(name, int(match[1]), int(match[2] or 0), size)
