"""Rules that stop a training early by its learning curve beside others; they know nothing of who runs the trainings.

A curve is told point by point, in the order in which the points came in; each rule decides with what it was told so
far, so that told in the same order it decides the same again. All values are minimised (validation error, percent).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class StoppingRule(Protocol):
    """Decides within one group of comparable trainings."""

    def report(self, name: str, epoch: int, value: float) -> str | None:
        """Tell one point of a curve (epochs from 1); why the training is to stop, None when it goes on."""


@dataclass
class Halving:
    """Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", ASHA).

    At epoch grace * reduction^k a curve must be among the best 1/reduction of those that came to that rung before it.
    With several brackets (asynchronous HyperBand) a training belongs to one of them by its name; bracket s leaves out
    the first s rungs, and is as much more seldom.
    """

    grace: float
    most: int  # epochs of a whole training
    reduction: float
    brackets: int = 1
    _rungs: list[list[tuple[float, dict[str, float]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        last = int(math.log(self.most / self.grace) / math.log(self.reduction) + 1e-9) if self.grace < self.most else 0
        for bracket in range(min(self.brackets, last + 1)):
            self._rungs.append([(self.grace * self.reduction**k, {}) for k in range(last, bracket - 1, -1)])

    def bracket(self, name: str) -> int:
        """Which bracket a training belongs to: by its name alone, so that a second attempt meets the same rungs."""
        weights = np.exp([float(len(rungs)) for rungs in self._rungs])
        place = zlib.crc32(name.encode()) / 2**32
        return int(np.searchsorted(np.cumsum(weights / weights.sum()), place, side="right"))

    def report(self, name: str, epoch: int, value: float) -> str | None:
        for milestone, reached in self._rungs[min(self.bracket(name), len(self._rungs) - 1)]:
            if epoch < milestone:
                continue
            if name in reached:  # the highest rung that it has come to has decided
                return None
            cutoff = np.nanpercentile(list(reached.values()), 100 / self.reduction) if reached else None
            reached[name] = value
            return f"not among the best 1/{self.reduction:g}" if cutoff is not None and value > cutoff else None
        return None


@dataclass
class Median:
    """Stops a curve whose best so far is worse than the median of the others' means up to that epoch.

    Golovin et al. 2017, "Google Vizier", section 3.2.1; at least `least` others must have come that far.
    """

    grace: float
    most: int
    least: int = 3
    _curves: dict[str, dict[int, float]] = field(default_factory=dict)

    def report(self, name: str, epoch: int, value: float) -> str | None:
        mine = self._curves.setdefault(name, {})
        mine[epoch] = value
        if epoch < self.grace or epoch >= self.most:
            return None
        others = [curve for other, curve in self._curves.items() if other != name and max(curve) >= epoch]
        if len(others) < self.least:
            return None
        means = [np.mean([seen for at, seen in curve.items() if at <= epoch]) for curve in others]
        return "worse than the median" if min(mine.values()) > float(np.median(means)) else None


def make_rule(name: str, *, grace: float, epochs: int, reduction: float, brackets: int) -> StoppingRule | None:
    """The rule by name (asha, median, hyperband), None for none; `grace` is a share of the epochs."""
    first = max(1, math.ceil(grace * epochs))
    if name == "median":
        return Median(first, epochs)
    if name == "asha":
        return Halving(first, epochs, reduction)
    return Halving(first, epochs, reduction, brackets) if name == "hyperband" else None
