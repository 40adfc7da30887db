"""Waits for events with a limit that says what it waited for; one environment variable scales all limits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

TIME_SCALE = float(os.environ.get("TEST_TIME_SCALE", "1"))  # e.g. 3 on a machine that is busy or slow
PATIENCE_SECONDS = 120.0  # within which an event comes on a machine that is not busy, with a large margin
POLL_SECONDS = 0.05


def scaled(seconds: float = PATIENCE_SECONDS) -> float:
    """Return a time limit for this machine: `seconds` times the environment variable TEST_TIME_SCALE."""
    return seconds * TIME_SCALE


def wait_until(
    holds: Callable[[], object],
    event: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    unless: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Wait until something holds.

    Args:
        holds: called again and again until it returns something true.
        event: what is waited for, for the message of a failure.
        seconds: the limit, before it is scaled.
        poll_seconds: between two calls of `holds`.
        unless: what makes the event impossible, as text (e.g. that the process that causes it has ended); checked only
            while the event has not come.

    Raises:
        AssertionError: the limit is over, or the event has become impossible.
    """
    limit = time.monotonic() + scaled(seconds)
    while not holds():
        obstacle = unless()
        if obstacle and not holds():
            raise AssertionError(f"waited for {event}, but {obstacle}")
        if time.monotonic() > limit:
            raise AssertionError(f"waited {scaled(seconds):g} s for {event} (TEST_TIME_SCALE={TIME_SCALE:g})")
        time.sleep(poll_seconds)
