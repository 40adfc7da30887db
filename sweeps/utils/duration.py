"""Durations as text, for progress and estimates."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Format a duration as minutes and seconds, with hours if there are any.

    Args:
        seconds: the duration, at least 0; it is rounded down to whole seconds.

    Returns:
        M:SS, e.g. `1:05`, or H:MM:SS, e.g. `2:03:04`.
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
