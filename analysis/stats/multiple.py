"""Many comparisons at once: Holm's correction, which keeps the chance of any false alarm at the level.

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
    known = [p_value for p_value in p_values if p_value is not None]
    if not known:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests  # loads slowly

    corrected = iter(multipletests(known, method="holm")[1])
    return [None if p_value is None else float(next(corrected)) for p_value in p_values]
