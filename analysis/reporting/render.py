"""Draws a picture three times: a PNG for other documents, and two SVGs for a page, one for screens, one for phones.

The pictures of a large study take longer than its numbers, so several processes draw them side by side.
"""

from __future__ import annotations

import gc
import hashlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.reporting.front_figure import NARROW, WIDE, Layout, literal_text
from analysis.reporting.svg_theme import apply_theme
from lowrank.utils import atomic_path, usable_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
DPI = 150
SMALL, SMALL_DPI, SMALL_COLOURS = Layout(width=6.4, columns=3, title=False), 100, 64  # of a log
HASH_KEY = "Comment"  # of a small picture's text that tells what it shows
PRELOADED = ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
MIN_TRIALS = 500  # of a study whose pictures are drawn by several processes
LONGEST_FOLDER = 70  # bytes: paths of the server's sockets in the temporary folder must stay below 108
MAX_PROCESSES = 4  # a page has some twenty pictures, and every process takes 100 MB


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture: inline SVG in both widths, its variables' colours, the PNG's path."""

    name: str
    caption: str
    wide: str
    narrow: str
    colours: frozenset[str]
    png: Path


Draw = Callable[["Figure", Any, Layout], Iterable[str] | None]  # returns colours that are the same in the dark


@dataclass(frozen=True, kw_only=True)
class DrawJob:
    """A picture to draw: `draw`, a module's function, draws `data`; heights in inches."""

    name: str
    caption: str
    draw: Draw
    data: Any
    height: float = WIDE.height
    narrow_height: float = NARROW.height


class InlineExecutor(Executor):
    """An executor that runs each function in the calling thread, when it is submitted."""

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

    It takes a second; the caller reads meanwhile. The caller itself cannot be forked safely: it has threads (Arrow's,
    OpenBLAS's), and a copy of its memory would wait for locks that they hold.
    """
    if not _takes_sockets():
        return
    forkserver.set_forkserver_preload(["__main__", *PRELOADED])
    forkserver.ensure_running()


def _takes_sockets() -> bool:
    """Whether the path of the temporary folder is short enough for sockets in it."""
    return len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER


@contextmanager
def drawing_executor(trials: int) -> Iterator[Executor]:
    """Give the executor that draws the pictures of a study.

    Args:
        trials: of the study. With fewer than `MIN_TRIALS` processes would take longer to start than to draw.

    Yields:
        Several processes for a large study, else this one; this one too where the path of the temporary folder is long.
    """
    processes = min(usable_cores(), MAX_PROCESSES)
    if trials < MIN_TRIALS or processes == 1 or not _takes_sockets():
        yield InlineExecutor()
        return
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    # Figures are full of reference cycles, but a process draws only some ten: collecting seldom saves time
    with ProcessPoolExecutor(processes, context, gc.set_threshold, (100_000,)) as executor:
        for _ in range(processes):
            executor.submit(os.getpid)  # the processes start while the caller still computes what is to be drawn
        yield executor


def render_picture(job: DrawJob, folder: Path) -> Picture:
    """Draw a picture as PNG and, in both widths, as SVG.

    Args:
        job: what to draw.
        folder: where NAME.png is written.

    Returns:
        The SVGs, and where the PNG is.

    Raises:
        OSError: the PNG cannot be written.
    """
    name = job.name
    png = folder / f"{name}.png"
    with literal_text():
        figure, fixed = _draw(job, replace(WIDE, height=job.height))
        with atomic_path(png) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
        wide, wide_colours = _svg(figure, f"{name}-wide", fixed)
        figure, fixed = _draw(job, replace(NARROW, height=job.narrow_height))
        narrow, narrow_colours = _svg(figure, f"{name}-narrow", fixed)
    colours = frozenset(wide_colours | narrow_colours)
    return Picture(name=name, caption=job.caption, wide=wide, narrow=narrow, colours=colours, png=png)


def render_png(job: DrawJob, path: Path) -> None:
    """Draw a small picture as PNG, unless it is there already.

    The file carries a hash of what it shows: a log of many studies draws only what has changed.

    Args:
        job: what to draw.
        path: of the file.

    Raises:
        OSError: the file cannot be written.
    """
    shown = hashlib.sha256(f"{SMALL}{job.caption}{job.height}{job.data!r}".encode()).hexdigest()
    if _shown_by(path) == shown:
        return
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    buffer, text = io.BytesIO(), PngInfo()
    text.add_text(HASH_KEY, shown)
    with literal_text():
        figure, _ = _draw(job, replace(SMALL, height=job.height))
        figure.savefig(buffer, format="png", dpi=SMALL_DPI)
    # Few colours make a third of the size, which counts in version control
    with Image.open(buffer) as image, atomic_path(path) as temporary:
        image.convert("RGB").quantize(SMALL_COLOURS).save(temporary, format="png", optimize=True, pnginfo=text)


def _shown_by(path: Path) -> str:
    """The hash in a picture; "" where there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return str(image.info.get(HASH_KEY, ""))
    except (FileNotFoundError, UnidentifiedImageError):
        return ""


def _draw(job: DrawJob, layout: Layout) -> tuple[Figure, tuple[str, ...]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width, layout.height), dpi=100)
    FigureCanvasAgg(figure)
    return figure, tuple(job.draw(figure, job.data, layout) or ())


def _svg(figure: Figure, name: str, fixed: Iterable[str]) -> tuple[str, set[str]]:
    """The figure as SVG and its colours. Text stays text, so that it can be read aloud and copied."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # ids differ between pictures
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return apply_theme(buffer.getvalue(), fixed)
