"""Names that become folders: of studies, of teachers, and the ids of trials."""

from __future__ import annotations

import re

from lowrank.errors import InputError, show_value

NAME_RULE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"  # safe in every file system, in MLflow's filters and in a shell
_COMPILED = re.compile(NAME_RULE)


def check_plain_name(name: object, what: str) -> None:
    """Check a name that becomes part of a path, whoever wrote it.

    Args:
        name: the name.
        what: what it names, as the message begins: `--name`, `a trial's id`.

    Raises:
        InputError: it is not a text of up to 80 letters, digits, `_`, `-` or `.`, or begins with `-` or `.`.
    """
    if not isinstance(name, str) or not _COMPILED.fullmatch(name):
        raise InputError(
            f"{what} must be up to 80 letters, digits, `_`, `-` or `.`, and not begin with `-` or `.`, but got "
            f"{show_value(name)}"
        )
