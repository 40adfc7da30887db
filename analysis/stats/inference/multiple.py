"""Many comparisons at once: Holm's correction, which keeps the chance of any false alarm at the level, and its words.

Written out because that of statsmodels, with which a test compares it, collects garbage at each call: 0.2 seconds.

Reference: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
(1979).
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.stats.inference.intervals import Estimate

ALARM_LEVEL = 0.05


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


def count_compared(p_values: Sequence[float | None]) -> int:
    """Return how many comparisons have a p-value, for which Holm's rule corrects.

    Args:
        p_values: of all comparisons that are shown together.

    Returns:
        The number.
    """
    return sum(p_value is not None for p_value in p_values)


def describe_verdict(
    estimate: Estimate, p_value: float | None, corrected: float | None, comparisons: int, no_interval: str
) -> str:  # fmt: skip
    """Return what a difference shows, in a few words.

    Args:
        estimate: the difference in points of error: negative is better.
        p_value: of "no difference".
        corrected: the same, corrected for the number of comparisons; None where nothing gives a p-value.
        comparisons: that number.
        no_interval: what to say where the estimate has no interval.

    Returns:
        `better` or `worse` alone only where the corrected p-value is at most 0.05; with what it is within the noise of
        where only the interval leaves out 0; else `within noise`.
    """
    if estimate.beyond_noise is None:
        return no_interval
    side = "better" if estimate.mean < 0 else "worse"
    if corrected is not None and corrected <= ALARM_LEVEL:
        return side
    if not estimate.beyond_noise:
        return "within noise"
    if p_value is not None and p_value <= ALARM_LEVEL:
        return f"{side}, but within the noise of {comparisons} comparisons"
    return f"{side}, but within the noise of the images"


def correction_sentence(comparisons: int) -> str:
    """Say for how many comparisons verdicts are corrected.

    Args:
        comparisons: with a p-value.

    Returns:
        One sentence; "" for fewer than two.
    """
    return f"Verdicts are corrected for {comparisons} comparisons (Holm)." if comparisons > 1 else ""
