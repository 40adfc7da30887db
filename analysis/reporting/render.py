"""Draws a picture three times: a PNG for other documents, and two SVGs for a page, one for screens, one for phones.

The pictures of a large study take longer than its numbers, so processes of a `Studio` draw them side by side.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from analysis.reporting.front_figure import NARROW, WIDE, Layout
from analysis.reporting.svg_theme import themed
from lowrank.utils.cpu import usable_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
DPI = 150
PRELOADED = ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
MANY = 500  # trials
MOST_PROCESSES = 4  # a page has some twenty pictures, and every process takes 100 MB


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in both widths as inline SVG, the colours that its variables need, and the PNG beside the page."""

    name: str
    caption: str
    wide: str
    narrow: str
    colours: frozenset[str]
    png: Path


Draw = Callable[["Figure", Any, Layout], Iterable[str] | None]  # returns colours that stay as they are in the dark


@dataclass(frozen=True, kw_only=True)
class Order:
    """A picture to be drawn: `draw`, a function of a module, draws `data`; heights are in inches."""

    name: str
    caption: str
    draw: Draw
    data: Any
    height: float = WIDE.height
    narrow: float = NARROW.height


class Start(Protocol):
    """Begins with `function(*given)`; what is returned waits for its result, and raises what it raised."""

    def __call__(self, function: Callable[..., T], *given: Any) -> Callable[[], T]: ...


def at_once(function: Callable[..., T], *given: Any) -> Callable[[], T]:
    """A `Start` that does all of it at once."""
    found = function(*given)
    return lambda: found


class Studio:
    """Draws pictures into a folder: at once, or in the processes of an executor while the caller goes on."""

    def __init__(self, folder: Path, executor: Executor | None = None):
        self.folder, self._executor = folder, executor

    def start(self, function: Callable[..., T], *given: Any) -> Callable[[], T]:
        """See `Start`."""
        return at_once(function, *given) if self._executor is None else self._executor.submit(function, *given).result

    def take(self, order: Order) -> Callable[[], Picture]:
        """Begin with the picture; what is returned waits for it, and raises what its drawing raised."""
        return self.start(make_picture, order, self.folder)


def prepare_studio() -> None:
    """Begin to start the process from which those of a studio are forked; it takes a second, while the caller reads.

    They are not forked from the caller, which has threads (Arrow's, OpenBLAS's) that a copy of its memory would wait
    for.
    """
    forkserver.set_forkserver_preload(["__main__", *PRELOADED])
    forkserver.ensure_running()


@contextmanager
def studio(folder: Path, trials: int) -> Iterator[Studio]:
    """A studio for a study of so many trials: below `MANY` its processes would start for longer than they draw."""
    processes = min(usable_cores(), MOST_PROCESSES)
    if trials < MANY or processes == 1:
        yield Studio(folder)
        return
    prepare_studio()
    context = multiprocessing.get_context("forkserver")
    # Their collector seldom looks for cycles: figures are full of them, but a process draws only some ten
    with ProcessPoolExecutor(processes, context, gc.set_threshold, (100_000,)) as executor:
        for _ in range(processes):
            executor.submit(os.getpid)  # the processes start while the caller still computes what is to be drawn
        yield Studio(folder, executor)


def make_picture(order: Order, folder: Path) -> Picture:
    """Draw into NAME.png in `folder` and into SVG."""
    name = order.name
    figure, kept = _drawn(order, replace(WIDE, height=order.height))
    png = folder / f"{name}.png"
    _save_png(figure, png)
    first, colours = _svg(figure, f"{name}-wide", kept)
    figure, kept = _drawn(order, replace(NARROW, height=order.narrow))
    second, more = _svg(figure, f"{name}-narrow", kept)
    return Picture(
        name=name, caption=order.caption, wide=first, narrow=second, colours=frozenset(colours | more), png=png,
    )  # fmt: skip


def _drawn(order: Order, layout: Layout) -> tuple[Figure, tuple[str, ...]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width, layout.height), dpi=100)
    FigureCanvasAgg(figure)
    return figure, tuple(order.draw(figure, order.data, layout) or ())


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
