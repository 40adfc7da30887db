"""Durations as text, for progress and estimates."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Write a duration as a clock shows it.

    Args:
        seconds: the duration; fractions are cut off.

    Returns:
        E.g. `1:05`, or with hours `2:03:04`.
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
