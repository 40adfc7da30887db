"""Margins: whether a network is as good as a reference.

"Not shown to be worse" is no proof of being as good: with few images nothing is shown. So the question is turned round:
is the difference surely below a margin that the user finds small (non-inferiority)? Sure means that the upper end of
the one-sided 95 % interval, on the same images, lies at or below the margin.

Errors in percent, differences and margins in points. `wrong[setting, seed, image]`.

Reference: P. Westfall, A. Krishen, "Optimally weighted, fixed sequence and gatekeeper multiple testing procedures",
Journal of Statistical Planning and Inference 99 (2001), for trying hypotheses in an order that is fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.inference.paired import SeedVariance, WrongImages
from analysis.stats.inference.selection import SelectedDifference, choose, corrected_difference

MAX_MARGIN = 1.0  # points
MARGIN_SHARE = 0.25  # of the reference's error


@dataclass(frozen=True, kw_only=True)
class AsGood:
    """A setting that is surely not worse than the reference by more than the margin.

    Attributes:
        chosen: its index.
        difference: to the reference, corrected for the choice.
    """

    chosen: int
    difference: SelectedDifference


def default_margin(reference_error: float) -> float:
    """Return the margin where the space names none.

    It is a point, or a quarter of the reference's error if that is less.

    Args:
        reference_error: in percent.

    Returns:
        In points.
    """
    return min(MAX_MARGIN, MARGIN_SHARE * reference_error)


def as_good_sizes(
    wrong: NDArray[np.bool_], sizes: Sequence[int], reference: WrongImages, margin: float, screened: bool = False,
    between_seeds: SeedVariance | None = None,
) -> list[AsGood]:  # fmt: skip
    """Return the settings that are surely as good as a reference, largest first.

    Sizes are tried from the largest down, and the first that fails ends it. So the chance of any false claim is that of
    one: the order does not depend on the errors.

    Args:
        wrong: of all settings that compete, as for `corrected_error`.
        sizes: of the settings.
        reference: `[seed, image]`.
        margin: in points.
        screened: as for `corrected_error`.
        between_seeds: as for `corrected_error`.

    Returns:
        One entry for each different best setting; empty where none is surely as good.
    """
    claims: list[AsGood] = []
    limits = np.asarray(sizes)
    limit = limits.max(initial=0)
    while (within := np.flatnonzero(limits <= limit)).size:
        chosen = int(within[choose(wrong[within])])
        difference = corrected_difference(wrong[within], reference, screened, between_seeds)
        if difference.upper > margin:
            break
        claims.append(AsGood(chosen=chosen, difference=difference))
        limit = limits[chosen] - 1  # between the two the same setting is best
    return claims
