"""Test errors against parameters: the one look at the test split, beside printed results of the same data and split.

Errors are top-1 errors on the test images, in percent, means over the seeds that were looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from analysis.findings.published_results import PublishedResult
from analysis.stats.front import FrontPoint
from analysis.utils.formatting import method_label
from analysis.utils.styles import REFERENCE_COLOURS, method_styles
from sweeps.records.events import Role


@dataclass(frozen=True, kw_only=True)
class SettingTestError:
    """One setting: its leading trial, its mean test error in percent, and over how many seeds."""

    point: FrontPoint
    error: float
    spread: float | None  # sample standard deviation over the seeds, in points; None for one
    seeds: int


@dataclass(frozen=True, kw_only=True)
class PointSeries:
    """Points of one method: (parameters, test error in percent), by size; `printed` ones are drawn hollow."""

    label: str
    colour: str
    marker: str
    printed: bool
    points: tuple[tuple[float, float], ...]


def measured_test_errors(points: Sequence[FrontPoint]) -> list[SettingTestError]:
    """The settings whose test error is on record, by size."""
    groups: dict[str, list[FrontPoint]] = defaultdict(list)
    for point in points:
        if point.finished and point.test_error is not None:
            groups[point.setting].append(point)
    found = []
    for seeds in groups.values():
        lead = next((point for point in seeds if point.leads), seeds[0])
        errors = [point.test_error for point in seeds if point.test_error is not None]
        spread = stdev(errors) if len(errors) > 1 else None
        found.append(SettingTestError(point=lead, error=fmean(errors), spread=spread, seeds=len(errors)))
    return sorted(found, key=lambda each: (each.point.params, each.error))


def series_of_test_errors(
    points: Sequence[FrontPoint], found: Sequence[SettingTestError], printed: Sequence[PublishedResult]
) -> list[PointSeries]:
    """The study's own methods, its references, then the printed ones, which look like the method of that name.

    `points` are all of the study, by which a method looks the same in all of its pictures.
    """
    searched = [point.method for point in points if point.role is Role.SEARCH]
    known = method_styles([*searched, *(each.method for each in printed)])
    own = [each for each in found if each.point.role is not Role.REFERENCE]
    series = [
        PointSeries(label=method_label(method), colour=colour, marker=marker, printed=False, points=_at(own, method))
        for method, (colour, marker) in known.items()
    ]
    for number, each in enumerate(each for each in found if each.point.role is Role.REFERENCE):
        colour = REFERENCE_COLOURS[number % len(REFERENCE_COLOURS)]
        at = ((float(each.point.params), each.error),)
        series.append(PointSeries(label=each.point.form, colour=colour, marker="*", printed=False, points=at))
    for method, (colour, marker) in known.items():
        others = tuple(sorted((each.params, each.error) for each in printed if each.method == method))
        label = f"{method_label(method)}, printed"
        series.append(PointSeries(label=label, colour=colour, marker=marker, printed=True, points=others))
    return [each for each in series if each.points]


def _at(found: Sequence[SettingTestError], method: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(each.point.params), each.error) for each in found if each.point.method == method)
