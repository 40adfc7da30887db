"""Test errors against parameters, beside published results of the same data and split.

The test split is evaluated for the front when a study has first ended, and again where the user says so. Errors are
top-1 errors on the test images, in percent, means over the seeds that were evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from analysis.findings.published_results import PublishedResult
from analysis.stats import FrontPoint, group_by_setting, trials_off_front
from analysis.utils import REFERENCE_COLOURS, method_label, method_styles
from sweeps.records import Role


@dataclass(frozen=True, kw_only=True)
class SettingTestError:
    """The test error of one setting.

    Attributes:
        point: the trial that represents it.
        error: mean over the seeds, in percent.
        spread: sample standard deviation over the seeds, in points; None for one seed.
        seeds: how many were evaluated.
        left_front: whether better points have been found since, so that it is no longer on the front.
    """

    point: FrontPoint
    error: float
    spread: float | None
    seeds: int
    left_front: bool = False


@dataclass(frozen=True, kw_only=True)
class PointSeries:
    """Points of one method, for a figure.

    Attributes:
        label: for the legend.
        colour: as `#RRGGBB`.
        marker: of Matplotlib.
        printed: whether they are published results, which are drawn hollow.
        left_front: whether they have left the front since they were looked at, which are drawn faint.
        points: (parameters, test error in percent), by size.
    """

    label: str
    colour: str
    marker: str
    printed: bool
    points: tuple[tuple[float, float], ...]
    left_front: bool = False


def measured_test_errors(points: Sequence[FrontPoint]) -> list[SettingTestError]:
    """Return the settings whose test error is on record.

    Args:
        points: of a study.

    Returns:
        The settings, by size.
    """
    groups = group_by_setting(point for point in points if point.test_error is not None)
    settings, former = [], trials_off_front(points)
    for seeds in groups.values():
        lead = next((point for point in seeds if point.leads), seeds[0])
        errors = [point.test_error for point in seeds if point.test_error is not None]
        spread = stdev(errors) if len(errors) > 1 else None
        settings.append(
            SettingTestError(
                point=lead, error=fmean(errors), spread=spread, seeds=len(errors), left_front=lead.trial_id in former
            )
        )
    return sorted(settings, key=lambda setting: (setting.point.params, setting.error))


def series_of_test_errors(
    points: Sequence[FrontPoint], measured: Sequence[SettingTestError], published: Sequence[PublishedResult]
) -> list[PointSeries]:
    """Return what a figure of test errors shows.

    Args:
        points: all points of the study, so that a method looks the same in all of its figures.
        measured: the study's own test errors.
        published: results of the same data and split.

    Returns:
        The study's own methods, its references, then the published methods, which look like the method of that name.
    """
    searched = [point.method for point in points if point.role is Role.SEARCH]
    styles = method_styles([*searched, *(entry.method for entry in published)])
    searched_errors = [entry for entry in measured if entry.point.role is not Role.REFERENCE]
    present = [entry for entry in searched_errors if not entry.left_front]
    former = [entry for entry in searched_errors if entry.left_front]
    series = [
        PointSeries(
            label=method_label(method), colour=colour, marker=marker, printed=False, points=_at(present, method)
        )
        for method, (colour, marker) in styles.items()
    ]
    series += [
        PointSeries(
            label=f"{method_label(method)}, left the front", colour=colour, marker=marker, printed=False,
            points=_at(former, method), left_front=True,
        )
        for method, (colour, marker) in styles.items()
    ]  # fmt: skip
    for number, entry in enumerate(entry for entry in measured if entry.point.role is Role.REFERENCE):
        colour = REFERENCE_COLOURS[number % len(REFERENCE_COLOURS)]
        at = ((float(entry.point.params), entry.error),)
        series.append(PointSeries(label=entry.point.form, colour=colour, marker="*", printed=False, points=at))
    for method, (colour, marker) in styles.items():
        others = tuple(sorted((entry.params, entry.error) for entry in published if entry.method == method))
        label = f"{method_label(method)}, printed"
        series.append(PointSeries(label=label, colour=colour, marker=marker, printed=True, points=others))
    return [entry for entry in series if entry.points]


def _at(measured: Sequence[SettingTestError], method: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(entry.point.params), entry.error) for entry in measured if entry.point.method == method)
