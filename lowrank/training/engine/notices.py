"""Notices that a process gives once: each of its trials would repeat them."""

from __future__ import annotations

from collections.abc import Callable

_GIVEN: set[str] = set()  # keys of the notices that this process has given


def warn_once(notify: Callable[[str], None], message: str, key: str | None = None) -> None:
    """Give a warning that this process has not given yet.

    Args:
        notify: is called with the message.
        message: the warning.
        key: what decides whether it was given; None for the message.
    """
    if (key or message) not in _GIVEN:
        _GIVEN.add(key or message)
        notify(message)
