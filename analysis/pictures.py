"""Draws a picture three times: a PNG for other documents, and two SVGs for a page, one for screens, one for phones."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.plots import NARROW, WIDE, Layout
from analysis.theme import themed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in both widths as inline SVG, the colours that its variables need, and the PNG beside the page."""

    name: str
    caption: str
    wide: str
    narrow: str
    colours: frozenset[str]
    png: Path


Draw = Callable[["Figure", Layout], Iterable[str] | None]  # returns colours that stay as they are in the dark


def make_picture(
    name: str, caption: str, draw: Draw, folder: Path, *, height: float | None = None, narrow: float | None = None
) -> Picture:
    """Draw with `draw` into NAME.png in `folder` and into SVG; heights are in inches."""
    wide = replace(WIDE, height=height or WIDE.height)
    figure, kept = _drawn(draw, wide)
    png = folder / f"{name}.png"
    _save_png(figure, png)
    first, colours = _svg(figure, f"{name}-wide", kept)
    figure, kept = _drawn(draw, replace(NARROW, height=narrow or NARROW.height))
    second, more = _svg(figure, f"{name}-narrow", kept)
    return Picture(
        name=name, caption=caption, wide=first, narrow=second, colours=frozenset(colours | more), png=png,
    )  # fmt: skip


def _drawn(draw: Draw, layout: Layout) -> tuple[Figure, tuple[str, ...]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width, layout.height), dpi=100)
    FigureCanvasAgg(figure)
    return figure, tuple(draw(figure, layout) or ())


def _save_png(figure: Figure, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=DPI)
    os.replace(temporary, path)


def _svg(figure: Figure, name: str, kept: Iterable[str]) -> tuple[str, set[str]]:
    """Text stays text, so that it can be read aloud and copied; ids differ from picture to picture."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return themed(buffer.getvalue(), kept)
