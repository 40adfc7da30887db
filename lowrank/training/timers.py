"""Where the time of an epoch goes: seconds by phase, from clocks that never make the host wait for the device.

On a CPU a batch takes as long as the loop waits for it. On a GPU the loop only queues work: two CUDA events around each
request for a batch are read once the epoch is over, so that the time is the device's, waiting for the host included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

INPUT, COMPILE, EVALUATION = "input_seconds", "compile_seconds", "eval_seconds"
EVALUATION_SET_UP = "eval_compile_seconds"  # not part of EVALUATION
T = TypeVar("T")


class PhaseTimers:
    """The clocks of one training.

    Args:
        device: where it runs.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._inner = 0.0  # seconds of the phases inside the present one

    def begin(self) -> None:
        """Start a new epoch."""
        self._seconds = {INPUT: 0.0}
        self._events = []

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside `with`, without that of phases inside it.

        If the device works in the block, the block must end by waiting for it.

        Args:
            phase: the name under which `read` gives the time.
        """
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        except BaseException:
            self._inner = outer
            raise
        seconds = time.perf_counter() - start
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds - self._inner
        self._inner = outer + seconds

    def input(self, batches: Iterator[T]) -> Iterator[T]:
        """Count the time that each batch takes to come.

        Args:
            batches: of the epoch.

        Yields:
            The batches.
        """
        while True:
            try:
                with self._by_events() if self._on_gpu else self.timed(INPUT):
                    batch = next(batches)
            except StopIteration:
                return
            yield batch

    @contextmanager
    def _by_events(self) -> Iterator[None]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def read(self) -> dict[str, float]:
        """Read the clocks; the device must have finished all its work.

        Returns:
            Seconds by phase since `begin`.
        """
        self._seconds[INPUT] = self._seconds.get(INPUT, 0.0) + sum(a.elapsed_time(b) for a, b in self._events) / 1000
        self._events = []
        return dict(self._seconds)
