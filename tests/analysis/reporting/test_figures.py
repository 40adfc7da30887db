from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.findings.curves import LearningCurve
from analysis.findings.heatmap import Cell, HeatMap
from analysis.reporting.figures import draw_curves, draw_heat_map
from analysis.reporting.front_figure import NARROW, WIDE
from analysis.reporting.render import SMALL


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_numbers_of_a_heat_map_lie_within_their_cells(layout):
    cells = tuple(tuple(Cell(error=10.0 + x, seeds=1, completed=1 + x + y) for x in range(3)) for y in range(8))
    heat = HeatMap(
        method="Tucker", column_quantity="rank scale", rows=tuple(range(2, 10)), columns=("1", "2", "3"), cells=cells
    )
    figure = Figure(figsize=(layout.width, 3.5))
    FigureCanvasAgg(figure)
    draw_heat_map(figure, heat, layout)
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [
        artist.get_window_extent()
        for artist in axes.get_children()
        if isinstance(artist, Rectangle) and artist is not axes.patch
    ]
    assert len(axes.texts) == 2 * len(boxes) == 48
    for text in axes.texts:
        box = text.get_window_extent()
        assert any(
            cell.x0 <= box.x0 and box.x1 <= cell.x1 and cell.y0 <= box.y0 and box.y1 <= cell.y1 for cell in boxes
        )


def test_the_legend_of_curves_with_long_names_lies_within_the_picture():
    names = [
        f"tensor train of the kernel, taught by the trained network, fitted in order, number {n}" for n in range(4)
    ]
    curves = [
        LearningCurve(trial_id=name, label=name, reference=False, points=((1, 9.0), (2, 5.0))) for name in names
    ]  # fmt: skip
    figure = Figure(figsize=(SMALL.width, 4.0))
    FigureCanvasAgg(figure)
    draw_curves(figure, curves, SMALL)
    (legend,) = figure.legends
    assert 0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.width
