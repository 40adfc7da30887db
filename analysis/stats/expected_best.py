"""What a method's best would be expected to be, had it been tried as often as another.

The best of many settings is lower than the best of few, also where both methods are as good. So methods are compared by
the expected lowest error of n of their settings, with the same n for all: the mean over all choices of n of the
settings that were tried (J. Dodge et al., "Show Your Work", EMNLP 2019, there with replacement; here without, so that
n of n are the best itself). Each setting counts by its first seed: only good settings get further ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.stats.front import FrontPoint


@dataclass(frozen=True, kw_only=True)
class ExpectedBest:
    """The expected lowest error of n settings of a method.

    Attributes:
        error: in percent.
        n: of how many settings.
        settings: how many were tried.
    """

    error: float
    n: int
    settings: int


def expected_best(errors: Sequence[float], n: int) -> float:
    """Return the expected lowest of n errors, drawn without replacement.

    Args:
        errors: one or more.
        n: how many are drawn, 1 to their number.

    Returns:
        The mean of the lowest over all choices of n of them: their mean for n = 1, the lowest for all.

    Raises:
        ValueError: `n` is out of range.
    """
    if not 1 <= n <= len(errors):
        raise ValueError(f"n must be between 1 and the {len(errors)} errors, but got {n}")
    # the error at `index` is the lowest where the others come from those above it
    choices = [math.comb(len(errors) - 1 - index, n - 1) for index in range(len(errors))]
    return math.fsum(e * count / math.comb(len(errors), n) for e, count in zip(sorted(errors), choices, strict=True))


def expected_bests(points: Iterable[FrontPoint], methods: Iterable[str]) -> dict[str, ExpectedBest]:
    """Return the expected lowest error of equally many settings of each method.

    Args:
        points: of a study, those within a budget; settings that were not trained to their end are ignored.
        methods: those that are compared.

    Returns:
        Method -> its expected best of n settings, n the number of the method with the fewest; methods without a setting
        are left out.
    """
    compared = set(methods)
    errors: dict[str, list[float]] = defaultdict(list)
    for point in points:
        if point.eligible and point.method in compared:
            errors[point.method].append(point.own_error)
    n = min(map(len, errors.values()), default=0)
    return {
        method: ExpectedBest(error=expected_best(values, n), n=n, settings=len(values))
        for method, values in errors.items()
    }
