"""Says on standard error how far a command is, once it has taken long enough for somebody to wonder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def silent(text: str) -> None:
    """Takes the place of what is told how far a command is, where nobody asks."""


class StepCounter:
    """Called at the start of each step with its name; `detail` says how far the step itself is."""

    def __init__(self, show: Callable[[str, int], None]):
        self._show, self._begun, self._name = show, 0, ""

    def __call__(self, name: str) -> None:
        self._name = name
        self._show(name, self._begun)
        self._begun += 1

    def detail(self, text: str) -> None:
        """E.g. `run 12 of 400`, beside the name of the step."""
        self._show(f"{self._name}, {text}", max(0, self._begun - 1))


@contextmanager
def steps(title: str, total: int) -> Iterator[StepCounter]:
    """Gives what is to be called at the start of each of `total` steps; the bar goes when all is done.

    Where standard error is no terminal nothing is drawn.
    """
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)

        def show(text: str, done: int) -> None:
            progress.update(task, description=f"{title}: {text}", completed=done)

        yield StepCounter(show)
        progress.update(task, completed=total)
