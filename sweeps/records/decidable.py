"""Which difference of two settings a study can decide, before and after it: known from images, seeds and errors."""

from __future__ import annotations

import math

POWER_Z = 1.6448536269514722 + 0.8416212335729143  # one-sided 95 %, seen in 80 % of studies
TYPICAL_DISCORDANCE = 1.0  # images on which one of two networks is wrong alone, as a share of their mean error


def decidable_difference(
    images: int, seeds: int, error: float, seed_deviation: float | None = None, discordance: float = TYPICAL_DISCORDANCE
) -> float:  # fmt: skip
    """Return the smallest true difference that four of five studies decide.

    Args:
        images: on which both are measured.
        seeds: of each.
        error: about that of both, in percent.
        seed_deviation: standard deviation between seeds in points; None for unknown, which counts the images alone.
        discordance: images on which one of the two is wrong alone, as a share of `error`.

    Returns:
        In points, for a one-sided test at 95 %.
    """
    by_image = 1e4 * discordance * error / 100 / images / seeds**0.5
    by_seed = 2 * (seed_deviation or 0.0) ** 2 / seeds
    return POWER_Z * math.sqrt(by_image + by_seed)
