"""Test errors against parameters: the one look at the test split, beside printed results of the same data and split.

Errors are top-1 errors on the test images, in percent, means over the seeds that were looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.front import FrontPoint, method_label
from analysis.front_plot import looks
from analysis.published import Printed
from sweeps.records import Role


@dataclass(frozen=True, kw_only=True)
class OnTest:
    """One setting: its leading trial, its mean test error in percent, and over how many seeds."""

    point: FrontPoint
    error: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Points of one method: (parameters, test error in percent), by size; `printed` ones are drawn hollow."""

    label: str
    colour: str
    marker: str
    printed: bool
    points: tuple[tuple[float, float], ...]


def on_test(points: Sequence[FrontPoint]) -> list[OnTest]:
    """The settings whose test error is on record, by size."""
    groups: dict[str, list[FrontPoint]] = defaultdict(list)
    for point in points:
        if point.finished and point.test_error is not None:
            groups[point.setting].append(point)
    found = []
    for seeds in groups.values():
        lead = next((point for point in seeds if point.leads), seeds[0])
        errors = [point.test_error for point in seeds if point.test_error is not None]
        found.append(OnTest(point=lead, error=fmean(errors), seeds=len(errors)))
    return sorted(found, key=lambda each: (each.point.params, each.error))


def marks(found: Sequence[OnTest], printed: Sequence[Printed]) -> list[Marks]:
    """The study's own methods and references, then the printed ones, which look like the method of that name."""
    known = looks([*(each.point.method for each in found), *(each.method for each in printed)])
    series = []
    for method, (colour, marker) in known.items():
        own = [each for each in found if each.point.method == method]
        for reference in (False, True):
            points = [each for each in own if (each.point.role is Role.REFERENCE) is reference]
            if points:
                series.append(Marks(
                    label=method_label(method) + (" (reference)" if reference else ""), colour=colour, printed=False,
                    marker="*" if reference else marker,
                    points=tuple((float(each.point.params), each.error) for each in points),
                ))  # fmt: skip
        others = sorted((each.params, each.error) for each in printed if each.method == method)
        if others:
            label = f"{method_label(method)}, printed"
            series.append(Marks(label=label, colour=colour, marker=marker, printed=True, points=tuple(others)))
    return sorted(series, key=lambda each: each.printed)
