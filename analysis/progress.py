"""Says on standard error how far a command is, once it has taken long enough for somebody to wonder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function to call at the start of each of `total` steps with its name; the bar goes when all is done.

    Where standard error is no terminal nothing is drawn.
    """
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            progress.update(task, description=f"{title}: {name}", completed=begun)
            begun += 1

        yield step
        progress.update(task, completed=total)
