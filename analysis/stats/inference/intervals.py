"""Confidence intervals: of an error that was measured on few images, and of a mean over few seeds.

`wilson_interval` and `newcombe_interval` treat the images as independent draws. Two networks are measured on the same
images, which makes their difference more certain than stated here: what is called noise may be real, and what is not
shown to differ may differ. analysis.stats.inference.paired compares
them on the same images where the records have these. The formulas are written out here because the error of a setting
is a mean over seeds, so that the number of wrong images is a fraction:
`scipy.stats.binomtest(...).proportion_ci(method="wilson")` takes whole numbers only (a test compares the two for
these), and SciPy has no Newcombe interval.

`t_interval` takes values as independent and about normal. The interval of paired differences is that of the mean of the
differences.

References: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
(1998), method 10; Student, "The probable error of a mean", Biometrika 6 (1908).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
Z_95 = 1.959963984540054  # quantile of the normal distribution at 97.5 %


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % t-interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; None for a single value.
        high: upper end; None for a single value.
        count: how many values there are.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def beyond_noise(self) -> bool | None:
        """Whether 0 lies outside the interval; None without an interval."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def t_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of values and its two-sided t-interval.

    Args:
        values: one or more; taken as independent and about normal.
        level: of confidence, between 0 and 1.

    Returns:
        Mean and interval; a single value has no interval.

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
    from scipy.special import stdtrit  # loads in a tenth of the time of scipy.stats, and is what that calls

    quantile = float(stdtrit(len(values) - 1, 0.5 + level / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=len(values))


def error_interval(errors: Sequence[float]) -> Estimate:
    """Return the mean of errors and its 95 % t-interval, as far as errors can lie in it.

    Args:
        errors: in percent, one or more.

    Returns:
        Mean and interval, its ends between 0 and 100.

    Raises:
        ValueError: as for `t_interval`.
    """
    estimate = t_interval(errors)
    low, high = (None if end is None else min(100.0, max(0.0, end)) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)


def wilson_interval(error: float, images: float, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's interval of an error rate.

    Args:
        error: top-1 error in percent, 0 to 100.
        images: how many it was measured on, above 0; an effective number, which may be a fraction, where the variance
            is known to differ.
        z: quantile of the normal distribution; that of 97.5 % gives a 95 % interval.

    Returns:
        Lower and upper end, in percent.

    Raises:
        ValueError: `error` is outside 0 to 100 or NaN, or there are no images.
    """
    if not 0 <= error <= 100:
        raise ValueError(f"an error must be between 0 and 100 percent, but got {error}")
    if not images > 0:
        raise ValueError(f"the number of images must be above 0, but got {images}")
    p = error / 100
    centre = p + z * z / (2 * images)
    spread = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    scale = 100 / (1 + z * z / images)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)


def newcombe_interval(first: float, second: float, images: int, z: float = Z_95) -> tuple[float, float]:
    """Return Newcombe's interval of the difference of two error rates (his method 10).

    Args:
        first: top-1 error in percent, 0 to 100.
        second: another one.
        images: how many each was measured on, at least 1.
        z: as for `wilson_interval`.

    Returns:
        Lower and upper end of `first - second`, in points of error.

    Raises:
        ValueError: as for `wilson_interval`.
    """
    first_low, first_high = wilson_interval(first, images, z)
    second_low, second_high = wilson_interval(second, images, z)
    gap = first - second
    return gap - math.hypot(first - first_low, second_high - second), gap + math.hypot(
        first_high - first, second - second_low
    )


def image_p_value(first: float, second: float, images: int) -> float:
    """Return the p-value of equal error rates, from their images as two samples.

    Args:
        first: top-1 error in percent, 0 to 100.
        second: another one.
        images: how many each was measured on, at least 1.

    Returns:
        The two-sided p-value of the level at which Newcombe's interval just touches 0.

    Raises:
        ValueError: as for `wilson_interval`.
    """
    if first == second:
        return 1.0
    inside, outside = 0.0, 40.0  # quantiles at which the interval leaves out 0 and holds it
    for _ in range(50):
        z = (inside + outside) / 2
        low, high = newcombe_interval(first, second, images, z)
        inside, outside = (inside, z) if low <= 0 <= high else (z, outside)
    return math.erfc(inside / math.sqrt(2))


def t_test_p_value(estimate: Estimate) -> float:
    """Return the p-value of "the mean is 0" that belongs to a 95 % t-interval.

    Args:
        estimate: of two or more values.

    Returns:
        The two-sided p-value.

    Raises:
        ValueError: the estimate has no interval.
    """
    if estimate.low is None or estimate.high is None:
        raise ValueError("a p-value needs an interval, but the estimate is of a single value")
    from scipy.special import stdtr, stdtrit

    half, freedom = (estimate.high - estimate.low) / 2, estimate.count - 1
    if half <= 0:
        return 1.0 if estimate.mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(estimate.mean) * float(stdtrit(freedom, 0.5 + LEVEL / 2)) / half))
