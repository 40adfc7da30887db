"""Which tests share a process when several run at once (`-n`): those of a file, and all files that start Ray.

The names of the tests are all that the scheduler gets, so it reads from a file's text whether its tests start Ray.
xdist's own marker, `xdist_group`, is written into the names of tests, which pytest 9.2 does not allow any more.
"""

from __future__ import annotations

import functools
from pathlib import Path

STUDIES = "studies"
_MARKER = "mark.study"


@functools.cache
def starts_ray(path: Path) -> bool:
    """Whether a test in this file is marked `study`."""
    return _MARKER in path.read_text()


def group_of(nodeid: str, root: Path, parallel_studies: bool) -> str:
    """Name the group that a test runs with, one after the other in one process.

    Args:
        nodeid: of the test, as pytest gives it.
        root: the folder that it is relative to.
        parallel_studies: let studies of different files run at once.

    Returns:
        The test's file, or STUDIES.
    """
    file = nodeid.partition("::")[0]
    return STUDIES if starts_ray(root / file) and not parallel_studies else file
