"""The picture of a study: validation error against parameters. First a typed record of what is shown, then the drawing.

Both axes are minimised: the lower left is best. Errors are in percent, sizes are parameter counts.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.front import FrontPoint, best, collect, front, method_label, references, strata, validation_images
from analysis.load import data_label
from analysis.noise import wilson
from analysis.placement import LEADER, Box, Label, distance, place
from sweeps.records import Role, Status, StudyRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers; each also has a marker of its own.
LOOKS = {
    "tensor_train": ("#0072B2", "o"), "tucker": ("#D55E00", "s"), "bottleneck": ("#009E73", "D"),
    "hashed": ("#CC79A7", "^"), "shuffle": ("#E69F00", "v"), "acdc": ("#56B4E9", "P"), "cp": ("#7F7F7F", "X"),
}  # fmt: skip
SPARE = [("#000000", "<"), ("#B8A800", ">"), ("#0072B2", "h"), ("#D55E00", "d"), ("#009E73", "p"), ("#CC79A7", "H")]
REFERENCE_COLOURS = ("#222222", "#8A5A00", "#5B2A86", "#00624A")
TITLE_LETTERS, MARKER_PIXELS = 78, 7.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """The completed trials of one method: (parameters, validation error in percent)."""

    label: str
    colour: str
    marker: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class FrontPlot:
    """All that the picture shows."""

    title: str
    subtitle: str
    series: tuple[Series, ...]
    stopped: tuple[tuple[float, float, str], ...]  # parameters, error at the last epoch, colour
    front: tuple[tuple[float, float], ...]
    references: tuple[tuple[str, float, float], ...]
    budgets: tuple[float, ...]
    labels: tuple[tuple[str, float, float], ...]  # of the front, most important first
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]

    @property
    def beyond(self) -> int:
        """How many points lie above the picture; they are drawn at its upper edge."""
        shown = [error for line in self.series for _, error in line.points] + [error for _, error, _ in self.stopped]
        return sum(error > self.y_limits[1] for error in shown)


def front_plot(study: StudyRecord) -> FrontPlot:
    """The record of the study's picture; raises ValueError if no trial or reference trained to its end."""
    points = collect(study)
    done = [point for point in points if point.finished]
    if not done:
        raise ValueError(f"a picture needs a completed trial, but {study.name} has none")
    kept, known = front(points), references(points)
    looks = _looks(point.method for point in points if point.role is Role.SEARCH)
    stopped = [point for point in points if point.status is Status.STOPPED and point.val_error is not None]
    return FrontPlot(
        title="\n".join(textwrap.wrap(str(study.header.get("question") or study.name), TITLE_LETTERS)[:3]),
        subtitle=_subtitle(study, points),
        series=_series(done, looks),
        stopped=tuple((float(p.params), p.error, looks[p.method][0]) for p in stopped if p.role is Role.SEARCH),
        front=tuple((float(point.params), point.error) for point in kept),
        references=tuple((method_label(p.method), float(p.params), p.error) for p in known),
        budgets=tuple(float(stratum.params) for stratum in strata(study) if stratum.params),
        labels=tuple((_short(point), float(point.params), point.error) for point in _by_importance(kept)),
        x_limits=_x_limits([point.params for point in (*done, *stopped)]),
        y_limits=_y_limits(points, kept),
    )


def draw_front(study: StudyRecord, path: Path, dpi: int = 160) -> FrontPlot:
    """Draw the study's picture into the PNG file `path` and return its record; raises ValueError as `front_plot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = front_plot(study)
    figure = Figure(figsize=(9.6, 6.4), dpi=dpi)
    FigureCanvasAgg(figure)
    _draw(figure, plot)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return plot


def _looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by method: the known ones keep theirs from picture to picture."""
    names = sorted(set(methods))
    others = [name for name in names if name not in LOOKS]
    spare = {name: SPARE[index % len(SPARE)] for index, name in enumerate(others)}
    return {name: LOOKS.get(name) or spare[name] for name in names}


def _series(done: Sequence[FrontPoint], looks: dict[str, tuple[str, str]]) -> tuple[Series, ...]:
    found = []
    for method, (colour, marker) in looks.items():
        points = tuple((float(p.params), p.error) for p in done if p.method == method and p.role is Role.SEARCH)
        if points:
            found.append(Series(label=method_label(method), colour=colour, marker=marker, points=points))
    return tuple(found)


def _subtitle(study: StudyRecord, points: Sequence[FrontPoint]) -> str:
    header = study.header
    data, network = header.get("data", {}), header.get("network", {}).get("name")
    searched = [point for point in points if point.role is Role.SEARCH]
    parts = [
        data_label(data.get("name", "")),
        network,
        _certainty(study, searched),
        f"{len(searched)} trial{'s' * (len(searched) != 1)}, {sum(p.finished for p in searched)} completed",
        f"seed {header['seed']}" if header.get("seed") is not None else None,
        time.strftime("%Y-%m-%d", time.gmtime(header["time"])) if header.get("time") else None,
    ]
    return "  |  ".join(part for part in parts if part)


def _certainty(study: StudyRecord, points: Sequence[FrontPoint]) -> str | None:
    """How far chance alone may move the best error: too much for a reader not to know it."""
    images, chosen = validation_images(study), best(points)
    if images is None or chosen is None:
        return None
    low, high = wilson(chosen.error, images)
    return f"{images:,} validation images: {chosen.error:.1f} % is ±{(high - low) / 2:.1f} points (95 %)"


def _short(point: FrontPoint) -> str:
    """A label in few letters, e.g. `3d 0.31`; a method without either setting is named."""
    parts = [f"{point.dims}d" if point.dims is not None else "", f"{point.rank_scale:.2g}" if point.rank_scale else ""]
    return " ".join(part for part in parts if part) or method_label(point.method)


def _by_importance(kept: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Ends first, then the rest from the left: where room is short, the ends are what a reader looks for."""
    ends = [kept[0], kept[-1]] if len(kept) > 1 else list(kept)
    return [*ends, *kept[1:-1]]


def _x_limits(sizes: Sequence[int]) -> tuple[float, float]:
    low, high = min(sizes), max(sizes)
    factor = max((high / low) ** 0.06, 1.15) if high > 1.5 * low else 1.6
    return low / factor, high * factor


def _y_limits(points: Sequence[FrontPoint], kept: Sequence[FrontPoint]) -> tuple[float, float]:
    """All of the front, the references and nine in ten of the completed trials; the far ones go to the upper edge."""
    done = sorted(point.error for point in points if point.finished)
    needed = [point.error for point in kept] + [point.error for point in references(points)]
    high = max([*needed, done[int(0.9 * (len(done) - 1))]])
    low = done[0]
    room = max(0.3 * (high - low), 0.5 * high - (high - low), 0.2)  # a single point deserves some ground around it
    return max(low - 0.6 * room, -0.04 * high), high + 0.4 * room


def _draw(figure: Figure, plot: FrontPlot) -> None:
    lines = plot.title.count("\n") + 1
    top = 0.905 - 0.036 * lines
    rows = -(-(len(plot.series) + len(plot.references) + bool(plot.front) + bool(plot.stopped)) // 5)
    bottom = 0.125 + 0.036 * rows
    axes = figure.add_axes((0.075, bottom, 0.905, top - bottom))
    figure.text(0.075, 0.965, plot.title, fontsize=13, fontweight="bold", va="top", linespacing=1.25)
    figure.text(0.075, top + 0.018, plot.subtitle, fontsize=9, color="0.35", va="bottom")
    _draw_axes(axes, plot)
    _draw_points(axes, plot)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", bbox_to_anchor=(0.5275, 0.008), ncols=-(-len(handles) // rows),
        frameon=False, fontsize=9, columnspacing=1.6, handletextpad=0.5,
    )  # fmt: skip
    _draw_labels(figure, axes, plot)


def _draw_axes(axes: Axes, plot: FrontPlot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(*plot.x_limits)
    axes.set_ylim(*plot.y_limits)
    wide = plot.x_limits[1] / plot.x_limits[0] > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 3, 4, 5, 6, 8), numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(1, 10)), numticks=30))
    axes.set_xlabel("parameters (log scale)")
    axes.set_ylabel("validation error (%)")
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _draw_budgets(axes, plot)


def _draw_budgets(axes: Axes, plot: FrontPlot) -> None:
    """Thin lines at the budgets, named at the lower edge, which the front leaves free, where there is room for it."""
    from matplotlib.transforms import blended_transform_factory

    both = blended_transform_factory(axes.transData, axes.transAxes)
    last = 0.0
    for budget in sorted(plot.budgets):
        if not plot.x_limits[0] < budget < plot.x_limits[1]:
            continue
        axes.axvline(budget, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
        at = axes.transAxes.inverted().transform(axes.transData.transform((budget, plot.y_limits[0])))[0]
        if at - last > 0.03:
            axes.annotate(
                f"≤ {budget:,.0f}", (budget, 0.012), xycoords=both, xytext=(-2.5, 0), textcoords="offset points",
                rotation=90, fontsize=7.5, color="0.5", ha="right", va="bottom", zorder=0.6,
            )  # fmt: skip
            last = at


def _draw_points(axes: Axes, plot: FrontPlot) -> None:
    top = plot.y_limits[1]
    for line in plot.series:
        inside_line = [point for point in line.points if point[1] <= top]
        axes.scatter(
            [x for x, _ in inside_line], [y for _, y in inside_line], s=46, c=line.colour, marker=line.marker,
            edgecolors="white", linewidths=0.7, zorder=3, label=f"{line.label} ({len(line.points)})",
        )  # fmt: skip
    for number, (name, x, y) in enumerate(plot.references):
        colour = REFERENCE_COLOURS[number % len(REFERENCE_COLOURS)]
        axes.scatter([x], [y], s=190, marker="*", c=colour, edgecolors="white", linewidths=0.8, zorder=4, label=name)
    _draw_front_line(axes, plot)
    _draw_stopped(axes, plot)
    _draw_beyond(axes, plot)


def _draw_front_line(axes: Axes, plot: FrontPlot) -> None:
    """The staircase, and a ring around each of its points."""
    if plot.front:
        axes.step(*_staircase(plot), where="post", color="0.25", linewidth=1.3, zorder=2.5, label="front")
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


def _draw_beyond(axes: Axes, plot: FrontPlot) -> None:
    """Arrows at the upper edge for the points above it, faint for stopped trials."""
    top = plot.y_limits[1]
    high = [(x, line.colour, 0.9) for line in plot.series for x, y in line.points if y > top]
    high += [(x, colour, 0.3) for x, y, colour in plot.stopped if y > top]
    for x, colour, alpha in high:
        axes.plot([x], [0.985], "^", ms=4, c=colour, alpha=alpha, mew=0, transform=axes.get_xaxis_transform(), zorder=2)
    if high:
        note = f"▲ {plot.beyond} above the picture"
        axes.text(0.995, 0.985, note, transform=axes.transAxes, fontsize=7.5, color="0.45", ha="right", va="center")


def _staircase(plot: FrontPlot) -> tuple[list[float], list[float]]:
    """The front to its right-hand end: any larger budget may use the last point too."""
    xs, ys = [x for x, _ in plot.front], [y for _, y in plot.front]
    return [xs[0], *xs, plot.x_limits[1]], [plot.y_limits[1], *ys, ys[-1]]


def _draw_labels(figure: Figure, axes: Axes, plot: FrontPlot) -> None:
    """Name the references and the front; a label that finds no room is left out, the table has it."""
    scale = figure.dpi / 100
    wanted = [(f"{name}  {y:.2f} %", x, y, "bold") for name, x, y in plot.references]
    wanted += [(text, x, y, "normal") for text, x, y in plot.labels]
    texts = [axes.text(0, 0, text, fontsize=8.5, fontweight=weight, alpha=0) for text, _, _, weight in wanted]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    labels = []
    for text, (_, x, y, _) in zip(texts, wanted, strict=True):
        extent = text.get_window_extent(renderer)
        px, py = axes.transData.transform((x, y))
        labels.append(Label(px / scale, py / scale, extent.width / scale, extent.height / scale))
        text.remove()
    frame = axes.get_window_extent(renderer)
    room = Box(frame.x0 / scale + 2, frame.y0 / scale + 2, frame.x1 / scale - 2, frame.y1 / scale - 2)
    for (text_, x, y, weight), label, box in zip(
        wanted, labels, place(labels, _obstacles(axes, plot, scale), room), strict=True
    ):
        if box is not None:
            _write(axes, text_, (x, y), weight, label, box, scale)


def _write(axes: Axes, text: str, xy: tuple[float, float], weight: str, label: Label, box: Box, scale: float) -> None:
    centre = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    points = 72 / 100  # a hundredth of an inch in points: offsets hold at any resolution
    offset = ((centre[0] - label.x) * points, (centre[1] - label.y) * points)
    far = distance(label, box) > LEADER
    arrow: dict[str, Any] | None = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 6}
    axes.annotate(
        text, xy, xytext=offset, textcoords="offset points", ha="center", va="center", fontsize=8.5,
        fontweight=weight, color="0.1", zorder=5, arrowprops=arrow if far else None,
        bbox={"boxstyle": "square,pad=0.08", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )  # fmt: skip


def _obstacles(axes: Axes, plot: FrontPlot, scale: float) -> list[Box]:
    """What labels should not cover: markers, stars, and the front's staircase."""
    marked = [point for line in plot.series for point in line.points] + [(x, y) for _, x, y in plot.references]
    boxes = [_around(axes, point, scale, MARKER_PIXELS) for point in marked]
    boxes += [_around(axes, (x, y), scale, 2.0) for x, y, _ in plot.stopped]
    if plot.front:
        xs, ys = _staircase(plot)
        corners = [axes.transData.transform(point) / scale for point in zip(xs, ys, strict=True)]
        for (x1, y1), (x2, y2) in pairwise(corners):
            boxes.append(Box(x1, y1 - 2, x2, y1 + 2))
            boxes.append(Box(x2 - 2, min(y1, y2), x2 + 2, max(y1, y2)))
    return boxes


def _around(axes: Axes, point: tuple[float, float], scale: float, radius: float) -> Box:
    x, y = axes.transData.transform(point) / scale
    return Box(x - radius, y - radius, x + radius, y + radius)


def _size(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
