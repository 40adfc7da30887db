"""Draws the other pictures of a report: learning curves, heat maps, importance, effects, test errors, comparisons.

Every function draws into an empty figure of the layout's size. Lines and points differ by more than colour: by marker,
line style or number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.findings import Cell, HeatMap, LearningCurve, PointSeries
from analysis.reporting.front_figure import Layout
from analysis.stats import HypervolumeGrowth, Importance, PairedEffect
from lowrank.utils import format_round_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#B8A800")
MARKERS = "osD^vPX<>"
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (2, 2), (6, 2, 1, 2), (1, 1.5), (8, 3))
FONT, SMALL, SMALLEST = 9.0, 8.0, 4.0  # points
DARK_INK, LIGHT_INK, GREY = "#010101", "#fefefe", "#d5d5d5"  # of a heat map, the same in the light and in the dark
LONG_LABEL = 5  # characters from which on labels below a heat map are written aslant


def plain_axes(figure: Figure, layout: Layout, *, left: float, bottom: float, right: float = 0.12) -> Axes:
    """Add axes with these margins in inches, without the upper and the right line."""
    width, height = layout.width, layout.height
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + 0.12) / height))
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def draw_curves(figure: Figure, curves: Sequence[LearningCurve], layout: Layout) -> None:
    """Draw validation error (log scale) over epochs; references are dashed.

    Args:
        figure: receives the axes.
        curves: to draw.
        layout: of the picture.
    """
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(curves) // (1 if layout.columns < 3 else 2))
    axes = plain_axes(figure, layout, left=0.62, bottom=0.6 + 0.2 * rows)
    for number, curve in enumerate(curves):
        epochs, errors = zip(*curve.points, strict=True)
        dashes = DASHES[1 + number % (len(DASHES) - 1)] if curve.reference else ()
        axes.plot(
            epochs, [max(error, 0.01) for error in errors], color="0.4" if curve.reference else COLOURS[number],
            dashes=dashes or (None, None), linewidth=1.2 if curve.reference else 1.7, marker=MARKERS[number % 9],
            markersize=4, markevery=max(1, len(epochs) // 8), label=curve.label,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_numbers(axes)
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel("validation error (%, log scale)", fontsize=FONT)
    _legend(figure, axes, columns=1 if layout.columns < 3 else 2)


def draw_heat_map(figure: Figure, heat: HeatMap, layout: Layout) -> tuple[str, ...]:
    """Draw cells coloured by error, each with its number.

    On a narrow picture dimensions run to the right and ranks downwards, so that cells stay wide enough for numbers.

    Args:
        figure: receives the axes.
        heat: what to show.
        layout: of the picture.

    Returns:
        The colours that must stay as they are in the dark.
    """
    turned = layout.columns < 3
    cells = list(zip(*heat.cells, strict=True)) if turned else list(heat.cells)
    across = [f"{dims}" for dims in heat.rows] if turned else list(heat.columns)
    down = list(heat.columns) if turned else [f"{dims}" for dims in heat.rows]
    longest = max(len(label) for label in across)
    aslant = longest > LONG_LABEL
    left, bottom = 0.45 + 0.075 * max(map(len, down)), 0.55 + 0.05 * longest * aslant
    axes = plain_axes(figure, layout, left=left, bottom=bottom)
    axes.grid(visible=False)
    colours = _draw_cells(axes, cells, min(SMALL, 21 * layout.width / max(1, len(across))), downwards=turned)
    axes.set_xticks(range(len(across)), across, rotation=35 if aslant else 0, ha="right" if aslant else "center")
    axes.set_yticks(range(len(down)), down)
    axes.set_xlim(-0.5, len(across) - 0.5)
    axes.set_ylim(len(down) - 0.5, -0.5) if turned else axes.set_ylim(-0.5, len(down) - 0.5)
    axes.tick_params(length=0, labelsize=SMALL)
    axes.set_xlabel("dimensions" if turned else heat.column_quantity, fontsize=FONT)
    axes.set_ylabel(heat.column_quantity if turned else "dimensions", fontsize=FONT)
    return colours


def _draw_cells(
    axes: Axes, cells: Sequence[Sequence[Cell | None]], size: float, *, downwards: bool
) -> tuple[str, ...]:  # fmt: skip
    """Draw the cells, rows upwards or downwards, with text of `size` points; the result is the colours used."""
    from matplotlib.patches import Rectangle

    errors = [cell.error for row in cells for cell in row if cell and cell.error is not None]
    shades = iter(_shades(errors))
    colours = {LIGHT_INK, DARK_INK, GREY}
    unequal = len({cell.completed for row in cells for cell in row if cell and cell.error is not None}) > 1
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            if cell is None:
                continue
            colour, ink, text = GREY, DARK_INK, "s" if cell.stopped else "x"
            if cell.error is not None:
                share, colour = next(shades)
                ink, text = (LIGHT_INK if share > 0.55 else DARK_INK), f"{cell.error:.1f}"
            colours.add(colour)
            # add_patch would work out the limits, which takes long; the caller sets them
            axes.add_artist(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colour, linewidth=0))
            axes.text(x, y, text, ha="center", va="center", fontsize=size, color=ink)
            if unequal and cell.error is not None:  # the lowest of more settings looks better
                axes.text(
                    x + 0.45, y + 0.45, str(cell.completed), ha="right", va="bottom" if downwards else "top",
                    fontsize=0.6 * size, color=ink,
                )  # fmt: skip
    return tuple(colours)


def _shades(errors: Sequence[float]) -> list[tuple[float, str]]:
    """Where each error lies between the lowest (0) and the highest (1) on a logarithmic scale, and its colour."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, to_hex

    if not errors:
        return []
    positive = np.maximum(errors, 0.01)
    shares = LogNorm(positive.min(), max(positive.max(), 1.001 * positive.min()))(positive)
    return [
        (float(share), to_hex(colour)) for share, colour in zip(shares, colormaps["cividis_r"](shares), strict=True)
    ]


def draw_importance(figure: Figure, importances: Sequence[Importance], layout: Layout) -> None:
    """Draw bars by field, one hatch an evaluator, each bar with its share."""
    names, count = [name for name, _ in importances[0].shares], len(importances)
    axes = plain_axes(figure, layout, left=0.3 + 0.075 * max(map(len, names)), bottom=0.55 + 0.22 * count)
    axes.grid(visible=False)
    height = 0.8 / count
    for number, importance in enumerate(importances):
        shares = dict(importance.shares)
        heights = [index + (number - (count - 1) / 2) * height for index in range(len(names))]
        axes.barh(
            heights, [shares.get(name, 0.0) for name in names], height=0.9 * height, color=COLOURS[number],
            hatch=("", "///", "...", "xx")[number], edgecolor="white", linewidth=0, label=importance.evaluator,
        )  # fmt: skip
        for y, name in zip(heights, names, strict=True):
            share = shares.get(name, 0.0)
            axes.text(share + 0.01, y, f"{100 * share:.0f} %", va="center", fontsize=SMALL, color="0.2")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("share of the error's variation (%)", fontsize=FONT)
    _legend(figure, axes, columns=1)


def draw_effects(figure: Figure, effects: Sequence[PairedEffect], layout: Layout) -> None:
    """Draw differences with their intervals; left of zero the second value is better."""
    names = [f"{effect.factor}: {effect.other} vs {effect.base}" for effect in effects]
    labels = [name if len(name) <= 46 or layout.columns > 2 else f"{name[:44]}…" for name in names]
    axes = plain_axes(figure, layout, left=0.25 + 0.066 * max(map(len, labels)), bottom=0.6)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.axvline(0, color="0.3", linewidth=1)
    for y, effect in enumerate(effects):
        estimate = effect.estimate
        colour = {True: COLOURS[0], False: "0.5", None: "0.5"}[estimate.beyond_noise]
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2)
        marker = "o" if estimate.beyond_noise else "D" if estimate.low is not None else "x"
        axes.plot([estimate.mean], [y], marker=marker, color=colour, markersize=6)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("difference in points of error", fontsize=FONT)


def draw_test_errors(figure: Figure, series: Sequence[PointSeries], layout: Layout) -> None:
    """Draw test error against parameters (log scale); printed results are hollow, what left the front is faint."""
    columns = 2 if layout.columns < 3 else 4
    axes = plain_axes(figure, layout, left=0.62, bottom=0.6 + 0.22 * -(-len(series) // columns))
    for line in series:
        xs, ys = zip(*line.points, strict=True)
        axes.scatter(
            xs, ys, s=110 if line.marker == "*" else 44, marker=line.marker, label=line.label, zorder=3,
            facecolors="none" if line.printed else line.colour, edgecolors=line.colour, linewidths=1.1,
            alpha=0.3 if line.left_front else 1.0,
        )  # fmt: skip
    axes.set_xscale("log")
    _plain_sizes(axes, layout)
    axes.set_ylabel("test error (%)", fontsize=FONT)
    _legend(figure, axes, columns=columns)


def draw_hypervolume(figure: Figure, growths: Sequence[HypervolumeGrowth], layout: Layout, *, unit: str) -> None:
    """Draw hypervolume over cost for each study, and the cost that all of them spent."""
    columns = 1 if layout.columns < 3 else 2
    axes = plain_axes(figure, layout, left=0.72, bottom=0.6 + 0.22 * -(-(len(growths) + 1) // columns))
    for number, growth in enumerate(growths):
        costs = [0.0, *(cost for cost, _ in growth.steps), growth.cost]
        volumes = [0.0, *(volume for _, volume in growth.steps)]
        volumes.append(volumes[-1])
        axes.step(
            costs, volumes, where="post", color=COLOURS[number % 9], dashes=DASHES[number % 6] or (None, None),
            marker=MARKERS[number % 9], markersize=4, markevery=max(1, len(costs) // 10), label=growth.study,
        )  # fmt: skip
    axes.axvline(min(growth.cost for growth in growths), color="0.6", linewidth=1, dashes=(3, 3), label="equal cost")
    axes.set_xlabel({"seconds": "seconds of training", "epochs": "epochs trained"}[unit], fontsize=FONT)
    axes.set_ylabel("hypervolume (points x decades)", fontsize=FONT)
    _legend(figure, axes, columns=columns)


def draw_fronts(figure: Figure, fronts: Sequence[tuple[str, Sequence[tuple[float, float]]]], layout: Layout) -> None:
    """Draw the named fronts of (parameters, error in percent)."""
    columns = 1 if layout.columns < 3 else 2
    axes = plain_axes(figure, layout, left=0.62, bottom=0.6 + 0.22 * -(-len(fronts) // columns))
    right = 1.15 * max(x for _, points in fronts for x, _ in points)
    for number, (name, points) in enumerate(fronts):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.step(
            [*xs, right], [*ys, ys[-1]], where="post", color=COLOURS[number % 9], marker=MARKERS[number % 9],
            markersize=5, markevery=list(range(len(xs))), dashes=DASHES[number % 6] or (None, None), label=name,
        )  # fmt: skip
    axes.set_xscale("log")
    _plain_sizes(axes, layout)
    axes.set_ylabel("validation error (%)", fontsize=FONT)
    _legend(figure, axes, columns=columns)


def _plain_sizes(axes: Axes, layout: Layout) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if layout.columns > 2 else (1, 3), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_round_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters (log scale)", fontsize=FONT)


def _plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subs = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0) if high / low > 8 else tuple(float(n) for n in range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    size = SMALL
    while True:
        legend = figure.legend(
            handles, names, loc="lower center", bbox_to_anchor=(0.5, 0.005), ncols=columns, frameon=False,
            fontsize=size, columnspacing=1.6, handlelength=2.6,
        )  # fmt: skip
        if size <= SMALLEST or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
        size -= 0.5
