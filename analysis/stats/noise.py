"""How far an error rate, measured on few images, can be trusted.

Both intervals treat the images as independent draws. Two networks are measured on the same images, which makes their
difference a little more certain than stated here: what is called noise may be real, not the other way round.

References: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
(1998), method 10.
"""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # quantile of the normal distribution at 97.5 %


def wilson(error: float, images: int, z: float = Z_95) -> tuple[float, float]:
    """Interval (low, high), in percent, of a top-1 error of `error` percent measured on `images` images.

    Raises:
        ValueError: `error` is outside 0 to 100 or NaN, or there are no images.
    """
    if not 0 <= error <= 100:
        raise ValueError(f"an error must be between 0 and 100 percent, but got {error}")
    if images < 1:
        raise ValueError(f"an error needs at least one image, but got {images}")
    p = error / 100
    centre = p + z * z / (2 * images)
    spread = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    scale = 100 / (1 + z * z / images)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)


def difference(left: float, right: float, images: int, z: float = Z_95) -> tuple[float, float]:
    """Interval (low, high), in points, of `left - right`, two errors in percent measured on `images` images each.

    Raises:
        ValueError: as for `wilson`.
    """
    (left_low, left_high), (right_low, right_high) = wilson(left, images, z), wilson(right, images, z)
    gap = left - right
    return gap - math.hypot(left - left_low, right_high - right), gap + math.hypot(left_high - left, right - right_low)


def within_noise(left: float, right: float, images: int) -> bool:
    """Whether the 95 % interval of the difference of two errors (percent) holds 0."""
    low, high = difference(left, right, images)
    return low <= 0 <= high
