"""Many comparisons at once: Holm's correction, which keeps the chance of any false alarm at the level.

Written out because that of statsmodels, with which a test compares it, collects garbage at each call: 0.2 seconds.

Reference: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
(1979).
"""

from __future__ import annotations

from collections.abc import Sequence


def holm_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number.

    Args:
        p_values: of all comparisons that are shown together; None for one that has none.

    Returns:
        The corrected values in the same order. Of comparisons without any true effect, the chance that one or more is
        at most 0.05 is at most 5 %, however they depend on each other.
    """
    ordered = sorted((p_value, index) for index, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, index) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_value))
        corrected[index] = largest
    return corrected
