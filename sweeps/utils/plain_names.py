"""Names that become folders: of studies, of teachers, and the ids of trials."""

from __future__ import annotations

import re

from lowrank.errors import InputError, show_value

_RULE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"  # safe in every file system, in MLflow's filters and in a shell
_COMPILED = re.compile(_RULE)


def is_plain_name(name: object) -> bool:
    """Tell whether a name may become part of a path.

    Args:
        name: the name, whoever wrote it.

    Returns:
        True for a text of up to 80 letters, digits, `_`, `-` or `.` that does not begin with `-` or `.`.
    """
    return isinstance(name, str) and _COMPILED.fullmatch(name) is not None


def check_plain_name(name: object, what: str) -> None:
    """Check a name that becomes part of a path, whoever wrote it.

    Args:
        name: the name.
        what: what it names, as the message begins: `--name`, `a trial's id`.

    Raises:
        InputError: it is not a text of up to 80 letters, digits, `_`, `-` or `.`, or begins with `-` or `.`.
    """
    if not is_plain_name(name):
        raise InputError(
            f"{what} must be up to 80 letters, digits, `_`, `-` or `.`, and not begin with `-` or `.`, but got "
            f"{show_value(name)}"
        )
