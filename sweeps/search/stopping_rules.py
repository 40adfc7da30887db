"""Rules that stop a training early by comparing its learning curve with others; independent of what runs the trainings.

A rule is told curves point by point, in the order in which the points came in, and decides with what it knows so far:
told the same points in the same order it decides the same again. All values are minimised (validation error, percent).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sweeps.space import SearchSettings

DEFAULTS: dict[str, float] = {
    name: SearchSettings.model_fields[name].default for name in ("grace", "reduction", "brackets")
}  # of a space that does not set them


class StoppingRule(Protocol):
    """Decides within one group of comparable trainings."""

    def report(self, name: str, epoch: int, value: float) -> str | None:
        """Add one point of a curve.

        Args:
            name: the training.
            epoch: counted from 1.
            value: the value after that epoch, which is minimised.

        Returns:
            Why the training is to stop; None when it goes on.
        """


@dataclass
class Halving:
    """Asynchronous successive halving, ASHA.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning". At epoch grace * reduction^k, a rung, a
    curve must be among the best 1/reduction of those that came to that rung before it. With several brackets
    (asynchronous HyperBand) a training belongs to one of them by its name; bracket s leaves out the first s rungs, and
    is chosen the less often the more it leaves out.
    """

    grace: float  # epochs before the first rung
    epochs: int  # of a whole training
    reduction: float
    brackets: int = 1
    _rungs: list[list[tuple[float, dict[str, float]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        last = (
            int(math.log(self.epochs / self.grace) / math.log(self.reduction) + 1e-9) if self.grace < self.epochs else 0
        )
        for bracket in range(min(self.brackets, last + 1)):
            self._rungs.append([(self.grace * self.reduction**k, {}) for k in range(last, bracket - 1, -1)])

    def bracket(self, name: str) -> int:
        """Return a training's bracket.

        It depends on the name alone, so that a second attempt meets the same rungs.
        """
        weights = np.exp([float(len(rungs)) for rungs in self._rungs])
        quantile = zlib.crc32(name.encode()) / 2**32
        return int(np.searchsorted(np.cumsum(weights / weights.sum()), quantile, side="right"))

    def report(self, name: str, epoch: int, value: float) -> str | None:
        """Add one point of a curve; see `StoppingRule.report`."""
        for milestone, reached in self._rungs[min(self.bracket(name), len(self._rungs) - 1)]:
            if epoch < milestone:
                continue
            if name in reached:  # only the highest rung that a curve has come to decides
                return None
            cutoff = np.nanpercentile(list(reached.values()), 100 / self.reduction) if reached else None
            reached[name] = value
            return f"not among the best 1/{self.reduction:g}" if cutoff is not None and value > cutoff else None
        return None


@dataclass
class Median:
    """The median rule: stops curves that are worse than the others' median.

    It compares a curve's best so far with the median of the others' means up to that epoch. Golovin et al. 2017,
    "Google Vizier", section 3.2.1.
    """

    grace: float  # epochs before the first decision
    epochs: int  # of a whole training
    min_others: int = 3  # other curves that must have come that far
    _curves: dict[str, dict[int, float]] = field(default_factory=dict)

    def report(self, name: str, epoch: int, value: float) -> str | None:
        """Add one point of a curve; see `StoppingRule.report`."""
        curve = self._curves.setdefault(name, {})
        curve[epoch] = value
        if epoch < self.grace or epoch >= self.epochs:
            return None
        others = [other for key, other in self._curves.items() if key != name and max(other) >= epoch]
        if len(others) < self.min_others:
            return None
        means = [np.mean([earlier for at, earlier in other.items() if at <= epoch]) for other in others]
        return "worse than the median" if min(curve.values()) > float(np.median(means)) else None


def make_rule(name: str, *, grace: float, epochs: int, reduction: float, brackets: int) -> StoppingRule | None:
    """Make a rule by its name.

    Args:
        name: asha, median, hyperband, or any other for none.
        grace: the share of the epochs in which nothing is stopped.
        epochs: of a whole training.
        reduction: at each rung the best 1/reduction go on; of asha and hyperband.
        brackets: of hyperband.

    Returns:
        The rule; None for none.
    """
    first = max(1, math.ceil(grace * epochs))
    if name == "median":
        return Median(first, epochs)
    if name == "asha":
        return Halving(first, epochs, reduction)
    return Halving(first, epochs, reduction, brackets) if name == "hyperband" else None
