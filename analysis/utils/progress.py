"""Prints on standard error how far a command is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def silent(text: str) -> None:
    """Ignore how far a command is: the default where nothing is shown.

    Args:
        text: the name of a step.
    """


class StepCounter:
    """Is called with the name of each step when it starts."""

    def __init__(self, show: Callable[[str, int], None]):
        self._show, self._begun, self._name = show, 0, ""

    def __call__(self, name: str) -> None:
        """Show the name of the step that starts."""
        self._name = name
        self._show(name, self._begun)
        self._begun += 1

    def detail(self, text: str) -> None:
        """Show how far the current step is.

        Args:
            text: shown beside its name, e.g. `run 12 of 400`.
        """
        self._show(f"{self._name}, {text}", max(0, self._begun - 1))


@contextmanager
def steps(title: str, total: int) -> Iterator[StepCounter]:
    """Show a progress bar while a command runs; without a terminal nothing is drawn.

    Args:
        title: of the bar.
        total: how many steps there are.

    Yields:
        What is to be called with the name of each step when it starts.
    """
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)

        def show(text: str, done: int) -> None:
            progress.update(task, description=f"{title}: {text}", completed=done)

        yield StepCounter(show)
        progress.update(task, completed=total)
