"""Means of few repeats with their intervals, and what they are taken over.

Reference: Student, "The probable error of a mean", Biometrika 6 (1908); the interval of paired differences is that of
the mean of the differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % t-interval over `count` units; one unit has no interval."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the interval leaves 0 out; None without an interval."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def t_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of `values` and its two-sided t-interval, which takes them as independent and about normal.

    Raises:
        ValueError: there are no values, or one of them is NaN or infinite.
    """
    if not values:
        raise ValueError("a mean needs at least one value, but got none")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"every value must be finite, but got {list(values)}")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean=mean, low=None, high=None, count=1)
    from scipy.special import stdtrit  # a tenth of the start that scipy.stats has

    quantile = float(stdtrit(len(values) - 1, 0.5 + level / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=len(values))
