"""Draws a picture three times: a PNG for other documents, and two SVGs for a page, one for screens, one for phones.

The pictures of a large study take longer than its numbers, so several processes draw them side by side.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.reporting.front_figure import NARROW, WIDE, Layout
from analysis.reporting.svg_theme import themed
from lowrank.utils.atomic_write import atomic_path
from lowrank.utils.cpu import usable_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
DPI = 150
PRELOADED = ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
MIN_TRIALS = 500  # of a study whose pictures are drawn by several processes
MAX_PROCESSES = 4  # a page has some twenty pictures, and every process takes 100 MB


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
class DrawJob:
    """A picture to be drawn: `draw`, a function of a module, draws `data`; heights are in inches."""

    name: str
    caption: str
    draw: Draw
    data: Any
    height: float = WIDE.height
    narrow: float = NARROW.height


class InlineExecutor(Executor):
    """An executor that runs everything at once in the calling thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function.

        Args:
            fn: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.

        Returns:
            A future that has the result, or the exception that the function raised.
        """
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def start_forkserver() -> None:
    """Start the process from which those of `drawing_executor` are forked.

    It takes a second, during which the caller reads. They are not forked from the caller, which has threads (Arrow's,
    OpenBLAS's) that a copy of its memory would wait for.
    """
    forkserver.set_forkserver_preload(["__main__", *PRELOADED])
    forkserver.ensure_running()


@contextmanager
def drawing_executor(trials: int) -> Iterator[Executor]:
    """Give the executor that draws the pictures of a study.

    Args:
        trials: of the study. With fewer than `MIN_TRIALS` processes would take longer to start than to draw.

    Yields:
        Several processes for a large study, else this one.
    """
    processes = min(usable_cores(), MAX_PROCESSES)
    if trials < MIN_TRIALS or processes == 1:
        yield InlineExecutor()
        return
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    # Their collector seldom looks for cycles: figures are full of them, but a process draws only some ten
    with ProcessPoolExecutor(processes, context, gc.set_threshold, (100_000,)) as executor:
        for _ in range(processes):
            executor.submit(os.getpid)  # the processes start while the caller still computes what is to be drawn
        yield executor


def make_picture(job: DrawJob, folder: Path) -> Picture:
    """Draw into NAME.png in `folder` and into SVG."""
    name = job.name
    figure, kept = _drawn(job, replace(WIDE, height=job.height))
    png = folder / f"{name}.png"
    _save_png(figure, png)
    first, colours = _svg(figure, f"{name}-wide", kept)
    figure, kept = _drawn(job, replace(NARROW, height=job.narrow))
    second, more = _svg(figure, f"{name}-narrow", kept)
    return Picture(
        name=name, caption=job.caption, wide=first, narrow=second, colours=frozenset(colours | more), png=png,
    )  # fmt: skip


def _drawn(job: DrawJob, layout: Layout) -> tuple[Figure, tuple[str, ...]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width, layout.height), dpi=100)
    FigureCanvasAgg(figure)
    return figure, tuple(job.draw(figure, job.data, layout) or ())


def _save_png(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _svg(figure: Figure, name: str, kept: Iterable[str]) -> tuple[str, set[str]]:
    """Text stays text, so that it can be read aloud and copied; ids differ from picture to picture."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return themed(buffer.getvalue(), kept)
