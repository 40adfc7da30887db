"""Numbers and names as readers see them. Errors are in percent, differences in points of error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

METHOD_LABELS = {"cp": "CP", "acdc": "ACDC", "dense": "dense", "tucker": "Tucker", "svd": "SVD",
                 "spatial_svd": "spatial SVD", "tucker2": "Tucker-2", "cp_kernel": "CP of the kernel",
                 "tensor_train_kernel": "tensor train of the kernel", "unchanged": "dense, unchanged"}  # fmt: skip


class Interval(Protocol):
    """A mean with its interval; `low` and `high` are None where there is no interval."""

    @property
    def mean(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float | None:
        """The lower end."""

    @property
    def high(self) -> float | None:
        """The upper end."""


def data_label(name: str) -> str:
    """Return a data set's name for readers.

    Args:
        name: as recorded, e.g. `digits` or `parquet:/data/flowers`.

    Returns:
        The last part of a folder of images, e.g. `flowers`; any other name unchanged.
    """
    kind, colon, folder = name.partition(":")
    return Path(folder).name if colon and kind in ("parquet", "folder") else name


def method_label(method: str) -> str:
    """Return a method's name for readers.

    Args:
        method: as recorded, e.g. `tensor_train`.

    Returns:
        E.g. `tensor train`.
    """
    return METHOD_LABELS.get(method, method.replace("_", " "))


def status_label(status: str) -> str:
    """Return a trial's status for readers.

    Args:
        status: as recorded, e.g. `stopped_early`.

    Returns:
        E.g. `stopped early`.
    """
    return str(status).replace("_", " ")


def format_percent(error: float) -> str:
    """Return an error with its unit, with two decimals below 10 and one above.

    Args:
        error: in percent.

    Returns:
        E.g. `2.08 %`.
    """
    return f"{error:.2f} %" if error < 10 else f"{error:.1f} %"


def join_words(words: Sequence[str]) -> str:
    """Join words with commas and a last `and`.

    Args:
        words: any number.

    Returns:
        E.g. `a, b and c`; "" for none.
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def format_points(points: float, decimals: int = 2) -> str:
    """Return a difference with its sign; what rounds to zero has none.

    Args:
        points: the difference, in points of error.
        decimals: how many to show.

    Returns:
        E.g. `-0.42`, or `0.00`.
    """
    text = f"{points:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def format_error_interval(error: Interval | None) -> str:
    """Return a mean error with its interval.

    Args:
        error: in percent; None for no mean.

    Returns:
        E.g. `5.23 % (5.01 to 5.45)`, all with as many decimals, so that no rounded mean lies beside its interval; the
        mean alone without an interval; "" for None.
    """
    if error is None:
        return ""
    if error.low is None or error.high is None:
        return format_percent(error.mean)
    return f"{error.mean:.2f} % ({error.low:.2f} to {error.high:.2f})"


def format_points_interval(difference: Interval | None) -> str:
    """Return a mean difference with its interval.

    Args:
        difference: in points of error; None for no mean.

    Returns:
        E.g. `-0.42 (-0.80 to -0.04)`; the mean alone without an interval; "" for None.
    """
    if difference is None:
        return ""
    mean, low, high = difference.mean, difference.low, difference.high
    if low is None or high is None:
        return format_points(mean)
    return f"{format_points(mean)} ({format_points(low)} to {format_points(high)})"


def format_mean_and_deviation(mean: float, deviation: float | None, seeds: int) -> str:
    """Return a mean error over seeds with its sample standard deviation.

    Args:
        mean: in percent.
        deviation: in points of error; None for a single seed.
        seeds: how many there are.

    Returns:
        E.g. `5.23 % ± 0.12 (n = 3)`; the error alone for a single seed.
    """
    return format_percent(mean) if deviation is None else f"{format_percent(mean)} ± {deviation:.2f} (n = {seeds})"


def format_duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two or more.

    Args:
        seconds: the time.

    Returns:
        E.g. `45 s`, `12.5 min` or `3.4 h`.
    """
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
