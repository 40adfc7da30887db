"""Settings that were trained with several seeds: their mean, its interval, and the paired gap to a reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.stats.front import SEPARABLE, FrontPoint
from analysis.stats.intervals import Estimate, t_interval


@dataclass(frozen=True, kw_only=True)
class RepeatedSetting:
    """One setting over seeds; errors in percent, `gap` in points over the seeds shared with the reference."""

    point: FrontPoint  # the repeat of the lowest seed
    val_error: Estimate
    test_error: Estimate | None
    gap: Estimate | None
    seeds: tuple[int, ...]


def group_by_setting(points: Iterable[FrontPoint]) -> dict[str, list[FrontPoint]]:
    """Finished points by what they train, the seed left out."""
    groups: dict[str, list[FrontPoint]] = defaultdict(list)
    for point in points:
        if point.finished:
            groups[point.setting].append(point)
    return dict(groups)


def repeated_settings(points: Sequence[FrontPoint], reference: str = SEPARABLE) -> list[RepeatedSetting]:
    """Every setting with two seeds or more, best mean first; the gap is to the unthinned reference of that method."""
    groups = group_by_setting(points)
    bases = [group for group in groups.values() if group[0].method == reference and not group[0].is_thin]
    base = max((_by_seed(group) for group in bases), key=len, default={})
    found = [_repeated(group, base) for group in groups.values() if len(_by_seed(group)) > 1]
    return sorted(found, key=lambda each: (each.val_error.mean, each.point.params))


def _by_seed(group: Iterable[FrontPoint]) -> dict[int, FrontPoint]:
    return {point.seed or 0: point for point in sorted(group, key=lambda point: point.seed or 0)}


def _repeated(group: Sequence[FrontPoint], base: dict[int, FrontPoint]) -> RepeatedSetting:
    own = _by_seed(group)
    shared = [seed for seed in own if seed in base and own[seed].trial_id != base[seed].trial_id]
    gaps = [own[seed].own_error - base[seed].own_error for seed in shared]
    tested = [point.test_error for point in own.values() if point.test_error is not None]
    return RepeatedSetting(
        point=next(iter(own.values())),
        val_error=t_interval([point.own_error for point in own.values()]),
        test_error=t_interval(tested) if tested else None,
        gap=t_interval(gaps) if gaps else None,
        seeds=tuple(own),
    )
