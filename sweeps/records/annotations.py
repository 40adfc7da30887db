"""The user's own notes and tags on a trial or a study, checked as they are typed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lowrank.errors import InputError

MAX_NOTE_LENGTH = 2000  # characters; MLflow keeps 8,000 in a tag, into which several notes go
RESERVED_TAGS = frozenset({
    "study", "study_key", "trial_id", "point", "role", "stratum", "status", "reason", "attempts", "aliases", "adopted",
    "broken",
    "data", "network", "question", "commit", "command", "seed", "hardware", "host", "device", "artifacts_complete",
    "tables",
})  # fmt: skip
TAG_RULE = r"[A-Za-z][A-Za-z0-9_-]{0,79}"


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """Parse the user's tags.

    Args:
        pairs: each `K=V`, as typed.

    Returns:
        Values by name.

    Raises:
        InputError: a tag has another form, or its name is reserved.
    """
    tags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(TAG_RULE, name) or not value or len(value) > MAX_NOTE_LENGTH:
            raise InputError(
                "a tag must read K=V, K of up to 80 letters, digits, `_` or `-` after a letter, V of up to "
                f"{MAX_NOTE_LENGTH:,} characters, but got {pair[:100]!r}"
            )
        if name in RESERVED_TAGS:
            raise InputError(f"the tag {name!r} is reserved, as are: {', '.join(sorted(RESERVED_TAGS))}")
        tags[name] = value
    return tags


def check_note(text: str | None) -> str:
    """Check the user's note.

    Args:
        text: as typed; None for no note.

    Returns:
        The note without outer blanks; "" for None.

    Raises:
        InputError: the note is blank or too long.
    """
    if text is None:
        return ""
    if not text.strip() or len(text) > MAX_NOTE_LENGTH:
        raise InputError(f"a note must have 1 to {MAX_NOTE_LENGTH:,} characters, but got {len(text.strip()):,}")
    return text.strip()
