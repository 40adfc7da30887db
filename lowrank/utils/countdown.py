"""Says how far a piece of work has come and about how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


INTERVAL = 2.0
"""Seconds between two lines, at the least."""


def print_progress(line: str) -> None:
    """Print a line of progress at once, on standard error.

    Standard output is for the answer, such as JSON.

    Args:
        line: the text.
    """
    print(line, file=sys.stderr, flush=True)


class Countdown:
    """Prints lines before parts of a piece of work.

    A line says how much time is left if the other parts take as long as those before.

    Args:
        progress: called with each line.
        task: what is done, the beginning of each line.
        total: how many parts there are.
        announced: whether a line has already said that the work begins. Then nothing is printed in its first INTERVAL,
            and nothing at all where standard error is no terminal.
    """

    def __init__(self, progress: Callable[[str], None], task: str, total: int, *, announced: bool = False):
        self.progress, self.task, self.total = progress, task, total
        self._silent = announced and not sys.stderr.isatty()
        self._started: float | None = None
        self._begun = 0
        self._printed = time.perf_counter() if announced else -INTERVAL

    def step(self, part: str) -> None:
        """Print the line of the part that begins now, unless another was printed just before.

        Args:
            part: its name; "" for none.
        """
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        line = f"{self.task}: {self._begun + 1} of {self.total}" + (f", {part}" if part else "")
        if self._begun:
            remaining = (now - self._started) / self._begun * (self.total - self._begun)
            line += f"; about {remaining:.0f} s left" if remaining >= 1 else ""
        self._begun += 1
        if now - self._printed >= INTERVAL and not self._silent:
            self._printed = now
            self.progress(line)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over the parts, each of which has a `name`, and print lines.

        Args:
            items: the parts.

        Yields:
            Each part.
        """
        for item in items:
            self.step(str(getattr(item, "name", "")))
            yield item
