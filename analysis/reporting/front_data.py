"""What the picture of a study shows, as a typed record: validation error against size.

Both axes are minimised: the lower left is best. Errors are in percent; sizes are parameters, or mult-adds for one
image.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.findings import Evidence, selected_error, study_evidence
from analysis.stats import (
    FrontPoint,
    SizeMeasure,
    best_point,
    pareto_front,
    references,
    study_strata,
)
from analysis.utils import data_label, method_label, method_styles
from lowrank.utils import format_counted
from sweeps.records import Role, Status, StudyRecord

TITLE_WIDTH, TITLE_LINES = 78, 3  # characters a line
MAX_LABELS = 24
AXES: dict[SizeMeasure, str] = {"params": "parameters", "mult_adds": "mult-adds of one image"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """The completed trials of one method: (size, validation error in percent)."""

    label: str
    colour: str
    marker: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class FrontPlot:
    """All that the picture shows; sizes are x, errors in percent are y.

    Attributes:
        stopped: size, error at the last epoch and colour of each trial that was stopped early.
        references: name, size and error of each.
        labels: text, size and error; the most important first.
        thin: networks of several widths: a name, and (size, error) by size.
        spreads: of points of several seeds: size, mean, standard deviation.
        band: of each point of the front: size, lower and upper end of the 95 % interval of the best up to that size,
            corrected for the choice; empty where the number of images is not known.
    """

    title: str
    subtitle: str
    series: tuple[Series, ...]
    stopped: tuple[tuple[float, float, str], ...]
    front: tuple[tuple[float, float], ...]
    references: tuple[tuple[str, float, float], ...]
    budgets: tuple[float, ...]
    labels: tuple[tuple[str, float, float], ...]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    x_label: str = AXES["params"]
    thin: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    spreads: tuple[tuple[float, float, float], ...] = ()
    band: tuple[tuple[float, float, float], ...] = ()

    @property
    def points_above(self) -> int:
        """How many points lie above the picture; they are drawn at its upper edge."""
        errors = [error for line in self.series for _, error in line.points] + [error for _, error, _ in self.stopped]
        return sum(error > self.y_limits[1] for error in errors)


def front_plot(
    study: StudyRecord, points: Sequence[FrontPoint], measure: SizeMeasure = "params", evidence: Evidence | None = None
) -> FrontPlot:  # fmt: skip
    """Return what the picture of a study's front shows.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        measure: of size: the horizontal axis.
        evidence: of the study; None to collect it here.

    Returns:
        The record of the picture.

    Raises:
        ValueError: no trial or reference was trained to its end.
    """
    points = [point for point in points if point.size(measure) is not None]
    completed = [point for point in points if point.finished]
    if not completed:
        raise ValueError(f"a picture needs a completed trial, but {study.name} has none")
    front, reference_points = pareto_front(points, measure), references(points)
    evidence = evidence or study_evidence(study)
    styles = method_styles(point.method for point in points if point.role is Role.SEARCH)
    stopped = [point for point in points if point.status is Status.STOPPED and point.val_error is not None]
    return FrontPlot(
        title="\n".join(textwrap.wrap(study.header.question or study.name, TITLE_WIDTH)[:TITLE_LINES]),
        subtitle=_subtitle(study, points, evidence),
        series=_series(completed, styles, measure),
        stopped=tuple((*_position(p, measure), styles[p.method][0]) for p in stopped if p.role is Role.SEARCH),
        front=tuple(_position(point, measure) for point in front),
        references=tuple((p.form, *_position(p, measure)) for p in reference_points),
        budgets=tuple(float(s.params) for s in study_strata(study) if s.params) if measure == "params" else (),
        labels=tuple((_short_label(point), *_position(point, measure)) for point in _by_importance(front)[:MAX_LABELS]),
        x_limits=_x_limits([_position(point, measure)[0] for point in (*completed, *stopped)]),
        y_limits=_y_limits(points, front),
        x_label=AXES[measure],
        thin=_thin_lines(reference_points, measure),
        band=_band(points, front, measure, evidence),
        spreads=tuple((*_position(p, measure), p.spread) for p in (*front, *reference_points) if p.spread is not None),
    )


def _band(
    points: Sequence[FrontPoint], front: Sequence[FrontPoint], measure: SizeMeasure, evidence: Evidence
) -> tuple[tuple[float, float, float], ...]:
    """How sure the front is: the best up to each size was chosen among all of that size or smaller."""
    band = []
    for point in front:
        size, error = _position(point, measure)
        within = [other for other in points if (other.size(measure) or 0) <= size]
        selected = selected_error(within, evidence)
        if selected is not None:
            band.append((size, *selected.around(error)))
    return tuple(band)


def _position(point: FrontPoint, measure: SizeMeasure) -> tuple[float, float]:
    return float(point.size(measure) or 0), point.error


def _thin_lines(
    reference_points: Sequence[FrontPoint], measure: SizeMeasure
) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    """The networks that were trained at several widths, each as a line through its points."""
    lines = []
    for method in sorted({point.method for point in reference_points}):
        line = sorted(_position(point, measure) for point in reference_points if point.method == method)
        if len({size for size, _ in line}) > 1:
            thin = any(point.is_thin for point in reference_points if point.method == method)
            lines.append(
                (f"thinner {method_label(method).removeprefix('thin ')}" if thin else method_label(method), tuple(line))
            )
    return tuple(lines)


def _series(
    completed: Sequence[FrontPoint], styles: dict[str, tuple[str, str]], measure: SizeMeasure
) -> tuple[Series, ...]:
    series = []
    for method, (colour, marker) in styles.items():
        points = tuple(_position(p, measure) for p in completed if p.method == method and p.role is Role.SEARCH)
        if points:
            series.append(Series(label=method_label(method), colour=colour, marker=marker, points=points))
    return tuple(series)


def _subtitle(study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence) -> str:
    header = study.header
    searched = [point for point in points if point.role is Role.SEARCH]
    seeds = sorted({point.seeds for point in searched if point.finished})
    repeated = bool(seeds) and seeds[-1] > 1  # then a point is the mean over its seeds
    parts = [
        data_label(header.data.name),
        header.network.name,
        _certainty(searched, evidence),
        f"{format_counted(len(searched), 'setting' if repeated else 'trial')}, "
        f"{sum(p.finished for p in searched)} completed",
        f"{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds each (bars: standard deviation)"
        if repeated
        else (f"seed {header.seed}" if header.seed is not None else None),
        time.strftime("%Y-%m-%d", time.gmtime(header.time)) if header.time else None,
    ]
    return "  |  ".join(part for part in parts if part)


def _certainty(points: Sequence[FrontPoint], evidence: Evidence) -> str | None:
    """How far chance alone may move the best error: too much for a reader not to know it."""
    best, selected = best_point(points), selected_error(points, evidence)
    if best is None or selected is None:
        return None
    low, high = selected.around(best.error)
    return f"{evidence.images:,} validation images: the lowest, {best.error:.1f} %, is {low:.1f} to {high:.1f} % (95 %)"


def _short_label(point: FrontPoint) -> str:
    """A short label, e.g. `3d 0.31`; a method without dimensions is named."""
    shape = f"{point.dims}d" if point.dims is not None else method_label(point.method)
    return f"{shape} {point.rank_scale:.2g}" if point.rank_scale else shape


def _by_importance(front: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Ends first, then the others from the left: where space is short, the ends are what a reader looks for."""
    ends = [front[0], front[-1]] if len(front) > 1 else list(front)
    return [*ends, *front[1:-1]]


def _x_limits(sizes: Sequence[float]) -> tuple[float, float]:
    low, high = min(sizes), max(sizes)
    factor = max((high / low) ** 0.06, 1.15) if high > 1.5 * low else 1.6
    return low / factor, high * factor


def _y_limits(points: Sequence[FrontPoint], front: Sequence[FrontPoint]) -> tuple[float, float]:
    """All of the front, the references and nine in ten of the completed trials; the others go to the upper edge."""
    errors = sorted(point.error for point in points if point.finished)
    inside = [point.error for point in front] + [point.error for point in references(points)]
    high = max([*inside, errors[int(0.9 * (len(errors) - 1))]])
    low = errors[0]
    margin = max(0.3 * (high - low), 0.5 * high - (high - low), 0.2)  # a single point has some space around it
    return max(low - 0.6 * margin, -0.04 * high), high + 0.4 * margin
