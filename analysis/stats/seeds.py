"""Settings that were trained with several seeds: their mean, its interval, and the paired gap to a reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.stats.front import SEPARABLE, FrontPoint, find_reference
from analysis.stats.inference.intervals import Estimate, error_interval, t_interval
from analysis.stats.inference.paired import PairedDifference
from analysis.stats.wrong_images import WrongBySeed, pooled_seed_variance, same_images_difference
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class RepeatedSetting:
    """A setting that was trained with several seeds.

    Attributes:
        point: the trial of the lowest seed.
        val_error: mean validation error over the seeds, in percent.
        test_error: mean test error over the seeds that have one, in percent.
        gap: mean difference to the reference over the seeds of both, in points of error.
        same_images: whether `gap` is on the same images, its interval over seeds and images.
        seeds: the seeds, in ascending order.
    """

    point: FrontPoint
    val_error: Estimate
    test_error: Estimate | None
    gap: Estimate | None
    same_images: bool
    seeds: tuple[int, ...]


def is_screened(study: StudyRecord) -> bool:
    """Return whether settings got their further seeds because the first did well.

    That is so of the front of a search.

    Args:
        study: the records.

    Returns:
        False for a grid, which trains every setting with all seeds.
    """
    return study.header.section("search").get("sampler") != "grid"


def group_by_setting(points: Iterable[FrontPoint]) -> dict[str, list[FrontPoint]]:
    """Group points that differ in nothing but the seed.

    Args:
        points: of a study; unfinished ones are ignored.

    Returns:
        Id of the setting -> its points.
    """
    groups: dict[str, list[FrontPoint]] = defaultdict(list)
    for point in points:
        if point.finished:
            groups[point.setting].append(point)
    return dict(groups)


def mean_by_seed(errors: Iterable[tuple[int | None, float]]) -> dict[int, float]:
    """Return one error for each seed.

    Args:
        errors: pairs of a seed, None for 0, and an error in percent. Trials of one setting and seed are rare: they
            differ in what no record shows, and count by their mean.

    Returns:
        Seed -> error in percent.
    """
    values: dict[int, list[float]] = defaultdict(list)
    for seed, error in errors:
        values[seed or 0].append(error)
    return {seed: fmean(same) for seed, same in values.items()}


def repeated_settings(
    points: Sequence[FrontPoint], reference: str = SEPARABLE, wrong: Mapping[str, WrongBySeed] | None = None
) -> list[RepeatedSetting]:  # fmt: skip
    """Return every setting with two seeds or more.

    Args:
        points: of a study.
        reference: the method of the reference network, in full width, that the others are compared with.
        wrong: which images were wrong, from `wrong_by_setting`; gaps of settings without them are over seeds alone.

    Returns:
        The settings, lowest mean error first.
    """
    groups = group_by_setting(points)
    base_point = find_reference(points, reference)  # never a searched trial of that method, of however many seeds
    base = _by_seed(groups[base_point.setting]) if base_point else {}
    wrong = wrong or {}
    base_wrong = wrong.get(base_point.setting, {}) if base_point else {}
    between_seeds = pooled_seed_variance(wrong.values())
    settings = [
        _repeated(group, base, same_images_difference(wrong.get(setting, {}), base_wrong, between_seeds))
        for setting, group in groups.items()
        if len(_by_seed(group)) > 1
    ]
    return sorted(settings, key=lambda setting: (setting.val_error.mean, setting.point.params))


def _by_seed(group: Iterable[FrontPoint]) -> dict[int, FrontPoint]:
    return {point.seed or 0: point for point in sorted(group, key=lambda point: point.seed or 0)}


def _repeated(
    group: Sequence[FrontPoint], base: dict[int, FrontPoint], paired: PairedDifference | None
) -> RepeatedSetting:
    by_seed = _by_seed(group)
    shared = [seed for seed in by_seed if seed in base and by_seed[seed].trial_id != base[seed].trial_id]
    gaps = [by_seed[seed].own_error - base[seed].own_error for seed in shared]
    gap = t_interval(gaps) if gaps else None
    same_images = gap is not None and paired is not None and paired.seeds == len(gaps)
    if same_images and paired is not None:
        gap = paired.estimate
    tested = [point.test_error for point in by_seed.values() if point.test_error is not None]
    return RepeatedSetting(
        point=next(iter(by_seed.values())),
        val_error=error_interval([point.own_error for point in by_seed.values()]),
        test_error=error_interval(tested) if tested else None,
        gap=gap,
        same_images=same_images,
        seeds=tuple(by_seed),
    )
