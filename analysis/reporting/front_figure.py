"""Draws the picture of a study's front: as a PNG file, or into a figure of the report."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.reporting.front_data import FrontPlot, front_plot
from analysis.reporting.label_placement import LEADER_DISTANCE, Box, Label, distance, place_labels
from analysis.stats import FrontPoint
from analysis.utils import REFERENCE_COLOURS
from lowrank.utils import atomic_path, format_round_count
from sweeps.records import StudyRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where the home cannot be written matplotlib caches in a temporary folder, and warns of that in every command
logging.getLogger("matplotlib").setLevel(logging.ERROR)

SMALLEST_FONT = 5.0  # points, of a subtitle that must fit the width
MARKER_PIXELS, STOPPED_MARKER_PIXELS = 7.0, 2.0  # radii


BAND_LABEL = " (grey: 95 % interval)"  # an entry of its own would be too many for the rows of the legend


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Size of a picture in inches, columns of its legend, and whether it has a title."""

    width: float = 9.6
    height: float = 6.4
    columns: int = 5
    title: bool = True


WIDE, NARROW = Layout(title=False), Layout(width=4.4, height=5.2, columns=2, title=False)  # of a page: screen, phone


def literal_text() -> AbstractContextManager[None]:
    """Let matplotlib draw texts as they are: a question with two "$" is no formula."""
    from matplotlib import rc_context

    return rc_context({"text.parse_math": False})


def write_front_picture(study: StudyRecord, points: Sequence[FrontPoint], path: Path, dpi: int = 160) -> FrontPlot:
    """Draw the front of a study as a PNG file.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        path: of the file; its folder must exist.
        dpi: dots an inch; the picture is 9.6 by 6.4 inches.

    Returns:
        What the picture shows.

    Raises:
        ValueError: no trial was trained to its end.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = front_plot(study, points)
    with literal_text():
        figure = Figure(figsize=(Layout().width, Layout().height), dpi=dpi)
        FigureCanvasAgg(figure)
        draw_front(figure, plot, Layout())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
    return plot


def draw_front(figure: Figure, plot: FrontPlot, layout: Layout) -> None:
    """Draw a front into an empty figure.

    Args:
        figure: of the layout's size.
        plot: what to show.
        layout: of the picture.
    """
    lines = plot.title.count("\n") + 1
    top = 1 - (0.61 + 0.23 * lines) / layout.height if layout.title else 0.985
    left = 0.72 / layout.width if layout.title else 0.62 / layout.width
    axes = figure.add_axes((left, 0.2, 0.98 - left, top - 0.2))
    if layout.title:
        figure.text(left, 0.965, plot.title, fontsize=13, fontweight="bold", va="top", linespacing=1.25)
        size = 9.0
        subtitle = figure.text(left, top + 0.018, plot.subtitle, fontsize=size, color="0.35", va="bottom")
        while subtitle.get_window_extent().x1 > 0.99 * figure.bbox.width and size > SMALLEST_FONT:
            size -= 0.25
            subtitle.set_fontsize(size)
    _draw_axes(axes, plot, layout)
    _draw_points(axes, plot)
    rows = _draw_legend(figure, axes, layout.columns)
    bottom = (0.57 + 0.23 * rows) / layout.height + (0.11 / layout.height if not layout.title else 0.0357)
    axes.set_position((left, bottom, 0.98 - left, top - bottom))
    _draw_labels(figure, axes, plot)


def _draw_legend(figure: Figure, axes: Axes, columns: int) -> int:
    """Draw the legend below the axes, in at most `columns` columns and as many as fit the width; returns its rows."""
    handles, names = axes.get_legend_handles_labels()
    rows = -(-len(handles) // columns)
    while True:
        legend = figure.legend(
            handles, names, loc="lower center", bbox_to_anchor=(0.5, 0.008), ncols=-(-len(handles) // rows),
            frameon=False, fontsize=9, columnspacing=1.6, handletextpad=0.5,
        )  # fmt: skip
        if rows == len(handles) or legend.get_window_extent().width <= figure.bbox.width:
            return rows
        legend.remove()
        rows += 1


def _draw_axes(axes: Axes, plot: FrontPlot, layout: Layout) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(*plot.x_limits)
    axes.set_ylim(*plot.y_limits)
    decades = math.log10(plot.x_limits[1] / plot.x_limits[0]) * 9.6 / layout.width  # as on a wide picture
    axes.xaxis.set_major_locator(LogLocator(subs=_ticks(decades), numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_round_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(1, 10)), numticks=30))
    axes.set_xlabel(f"{plot.x_label} (log scale)")
    axes.set_ylabel("validation error (%)")
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _draw_budgets(axes, plot)


def _ticks(decades: float) -> tuple[float, ...]:
    """Where numbers stand within each decade of a logarithmic axis that shows so many."""
    for limit, ticks in ((4.5, (1.0,)), (3, (1.0, 3.0)), (1.48, (1.0, 2.0, 5.0))):
        if decades > limit:
            return ticks
    return (1, 1.5, 2, 3, 4, 5, 6, 8)


def _draw_budgets(axes: Axes, plot: FrontPlot) -> None:
    """Thin lines at the budgets, named at the lower edge where names do not overlap; the front leaves it free."""
    from matplotlib.transforms import blended_transform_factory

    both = blended_transform_factory(axes.transData, axes.transAxes)
    last = 0.0
    for budget in sorted(plot.budgets):
        if not plot.x_limits[0] < budget < plot.x_limits[1]:
            continue
        axes.axvline(budget, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
        x = axes.transAxes.inverted().transform(axes.transData.transform((budget, plot.y_limits[0])))[0]
        if x - last > 0.03:
            axes.annotate(
                f"≤ {budget:,.0f}", (budget, 0.012), xycoords=both, xytext=(-2.5, 0), textcoords="offset points",
                rotation=90, fontsize=7.5, color="0.5", ha="right", va="bottom", zorder=0.6,
            )  # fmt: skip
            last = x


def _draw_points(axes: Axes, plot: FrontPlot) -> None:
    top = plot.y_limits[1]
    for line in plot.series:
        inside = [point for point in line.points if point[1] <= top]
        axes.scatter(
            [x for x, _ in inside], [y for _, y in inside], s=46, c=line.colour, marker=line.marker,
            edgecolors="white", linewidths=0.7, zorder=3, label=f"{line.label} ({len(line.points)})",
        )  # fmt: skip
    _draw_references(axes, plot)
    for x, y, spread in plot.spreads:
        axes.errorbar([x], [y], yerr=[spread], color="0.35", linewidth=1.0, capsize=2.5, zorder=2.8)
    _draw_front_line(axes, plot)
    _draw_stopped(axes, plot)
    _draw_points_above(axes, plot)


def _draw_references(axes: Axes, plot: FrontPlot) -> None:
    """A star for each; those that a line joins share its colour and its entry of the legend."""
    for (_, points), dashes in zip(plot.thin, cycle(((5, 2), (2, 2), (6, 2, 1, 2))), strict=False):
        axes.plot(*zip(*points, strict=True), color="0.45", linewidth=1.1, dashes=dashes, zorder=2.4)
    stars: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in plot.references:
        line = next((line for line, points in plot.thin if (x, y) in points), name)
        # The unchanged network at the end of a line of thinner ones has an entry of its own
        stars.setdefault(line if name == line or name.startswith("thin ") else name, []).append((x, y))
    for (name, places), colour in zip(stars.items(), cycle(REFERENCE_COLOURS), strict=False):
        axes.scatter(
            [x for x, _ in places], [y for _, y in places], s=190, marker="*", c=colour, edgecolors="white",
            linewidths=0.8, zorder=4, label=name,
        )  # fmt: skip


def _draw_front_line(axes: Axes, plot: FrontPlot) -> None:
    """The staircase, and a ring around each of its points."""
    if plot.band:
        sizes = [size for size, _, _ in plot.band] + [plot.x_limits[1]]
        lows, highs = ([row[end] for row in plot.band] + [plot.band[-1][end]] for end in (1, 2))
        axes.fill_between(sizes, lows, highs, step="post", color="0.5", alpha=0.14, linewidth=0, zorder=0.5)
    if plot.front:
        name = f"front{BAND_LABEL * bool(plot.band)}"
        axes.step(*_staircase(plot), where="post", color="0.25", linewidth=1.3, zorder=2.5, label=name)
    axes.scatter(
        [x for x, _ in plot.front], [y for _, y in plot.front], s=105, facecolors="none", edgecolors="0.15",
        linewidths=1.0, zorder=3.5,
    )  # fmt: skip


def _draw_stopped(axes: Axes, plot: FrontPlot) -> None:
    if plot.stopped:
        inside = [point for point in plot.stopped if point[1] <= plot.y_limits[1]]
        axes.scatter(
            [x for x, _, _ in inside], [y for _, y, _ in inside], s=26, c=[c for _, _, c in inside], alpha=0.4,
            linewidths=0, marker=".", zorder=2,
        )  # fmt: skip
        axes.scatter([], [], s=26, c="0.5", alpha=0.6, marker=".", label=f"stopped early ({len(plot.stopped)})")


def _draw_points_above(axes: Axes, plot: FrontPlot) -> None:
    """Arrows at the upper edge for the points above it, faint for stopped trials."""
    from matplotlib.colors import to_rgba

    top = plot.y_limits[1]
    high = [(x, line.colour, 0.9) for line in plot.series for x, y in line.points if y > top]
    high += [(x, colour, 0.3) for x, y, colour in plot.stopped if y > top]
    if high:
        axes.scatter(
            [x for x, _, _ in high], [0.985] * len(high), s=16, marker="^", linewidths=0, zorder=2,
            c=[to_rgba(colour, alpha) for _, colour, alpha in high], transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        note = f"▲ {plot.points_above} above the picture"
        axes.text(0.995, 0.985, note, transform=axes.transAxes, fontsize=7.5, color="0.45", ha="right", va="center")


def _staircase(plot: FrontPlot) -> tuple[list[float], list[float]]:
    """The front to its right-hand end: any larger budget may use the last point too."""
    xs, ys = [x for x, _ in plot.front], [y for _, y in plot.front]
    return [xs[0], *xs, plot.x_limits[1]], [plot.y_limits[1], *ys, ys[-1]]


def _draw_labels(figure: Figure, axes: Axes, plot: FrontPlot) -> None:
    """Name the references and the front; a label without a free place is left out, the table has it."""
    scale = figure.dpi / 100
    names = [(f"{name}  {y:.2f} %", x, y, "bold") for name, x, y in plot.references]
    names += [(text, x, y, "normal") for text, x, y in plot.labels]
    texts = [axes.text(0, 0, text, fontsize=8.5, fontweight=weight, alpha=0) for text, _, _, weight in names]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    labels = []
    for text, (_, x, y, _) in zip(texts, names, strict=True):
        extent = text.get_window_extent(renderer)
        px, py = axes.transData.transform((x, y))
        labels.append(Label(px / scale, py / scale, extent.width / scale, extent.height / scale))
        text.remove()
    frame = axes.get_window_extent(renderer)
    inner = Box(frame.x0 / scale + 2, frame.y0 / scale + 2, frame.x1 / scale - 2, frame.y1 / scale - 2)
    boxes = place_labels(labels, _obstacles(axes, plot, scale), inner)
    for (name, x, y, weight), label, box in zip(names, labels, boxes, strict=True):
        if box is not None:
            _draw_label(axes, name, (x, y), weight, label, box)


def _draw_label(axes: Axes, text: str, xy: tuple[float, float], weight: str, label: Label, box: Box) -> None:
    centre = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    points = 72 / 100  # pixels are hundredths of an inch; offsets in points hold at any resolution
    offset = ((centre[0] - label.x) * points, (centre[1] - label.y) * points)
    joined = distance(label, box) > LEADER_DISTANCE
    arrow: dict[str, object] | None = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 6}
    axes.annotate(
        text, xy, xytext=offset, textcoords="offset points", ha="center", va="center", fontsize=8.5,
        fontweight=weight, color="0.1", zorder=5, arrowprops=arrow if joined else None,
        bbox={"boxstyle": "square,pad=0.08", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )  # fmt: skip


def _obstacles(axes: Axes, plot: FrontPlot, scale: float) -> list[Box]:
    """What labels should not cover: markers, stars, and the front's staircase."""
    points = [point for line in plot.series for point in line.points] + [(x, y) for _, x, y in plot.references]
    boxes = _boxes_around(axes, points, scale, MARKER_PIXELS)
    boxes += _boxes_around(axes, [(x, y) for x, y, _ in plot.stopped], scale, STOPPED_MARKER_PIXELS)
    if plot.front:
        xs, ys = _staircase(plot)
        corners = [axes.transData.transform(point) / scale for point in zip(xs, ys, strict=True)]
        for (x1, y1), (x2, y2) in pairwise(corners):
            boxes.append(Box(x1, y1 - 2, x2, y1 + 2))
            boxes.append(Box(x2 - 2, min(y1, y2), x2 + 2, max(y1, y2)))
    return boxes


def _boxes_around(axes: Axes, points: Sequence[tuple[float, float]], scale: float, radius: float) -> list[Box]:
    if not points:
        return []
    pixels = axes.transData.transform(points) / scale
    return [Box(x - radius, y - radius, x + radius, y + radius) for x, y in pixels]
