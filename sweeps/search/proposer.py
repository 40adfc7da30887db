"""What the search asks of a source of points, and the grid, which is the simplest one.

`sweeps.search.optuna_proposer` has the proposer with Optuna's samplers, and `make_proposer`, which chooses.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sweeps.records import Handle
from sweeps.space import Point, Points, Space, Stratum, Value


@dataclass(frozen=True)
class Proposal:
    """A point, and the handle under which its outcome is reported."""

    point: dict[str, Value]
    handle: Handle
    repeat: int = 0  # counts the seeds of the same point, from 0


class OutcomeKind(enum.Enum):
    """How a proposal ended."""

    COMPLETE = "complete"  # trained to its end
    PRUNED = "pruned"  # stopped early
    DIVERGED = "diverged"  # the settings' own fault
    INFEASIBLE = "infeasible"  # over a limit, of memory too
    LOST = "lost"  # nothing to learn from: a crash, or a duplicate that still runs


@dataclass(frozen=True)
class Outcome:
    """What a proposer is told of a proposal. All objectives are minimised."""

    kind: OutcomeKind
    # The objectives of a complete trial; of a pruned one the first is its value at `epoch`; of an infeasible one how
    # far it is over the limit, where that is known
    values: tuple[float, ...] = ()
    epoch: int = 0  # the last one trained
    trial_id: str = ""  # whose outcome this is


class Proposer(Protocol):
    """A source of points."""

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """Propose a point.

        Args:
            stratum: the range of sizes that the point must lie in.
            explore: whether to sample uniformly at random instead of using the sampler's model.

        Returns:
            The proposal; None when there are no more.
        """

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: Handle) -> Proposal:
        """Propose the same point again, after its first trial was lost with the driver.

        Args:
            stratum: the range of sizes that the point lies in.
            point: the point.
            handle: the handle of the lost proposal.

        Returns:
            A proposal, possibly under another handle.
        """

    def tell(self, handle: Handle, outcome: Outcome) -> None:
        """Report the outcome of a proposal.

        A second report of the same proposal changes nothing.

        Args:
            handle: the proposal's.
            outcome: how it ended.
        """

    def open_handles(self) -> list[Handle]:
        """Return the handles of proposals without a reported outcome."""

    def hide(self, handle: Handle, trial_id: str) -> None:
        """Learn nothing from a proposal.

        The same holds for any other proposal that was told the outcome of the same trial.

        Args:
            handle: the proposal's.
            trial_id: the trial, whose result turned out to be broken.
        """


class GridProposer:
    """Every combination of the values, once.

    The seed shuffles their order, so that a cut grid is a fair sample; with `order: longest_first` those that train
    longest come first, so that no long trial begins when most cards are already idle. With repeats every point is
    trained with the first seed, then every point with the second, and so on: wherever the grid is cut, no point has
    been trained more than once more often than another.
    """

    def __init__(
        self, space: Space, points: Points | None = None,
        training_cost: Callable[[Point], float] | None = None,
    ):  # fmt: skip
        """List the grid.

        Args:
            space: its values, order, seed and number of repeats.
            points: the space's points; None where its budget is shared evenly.
            training_cost: how long a point trains beside others; needed where the longest come first.
        """
        grid = (points or Points(space)).grid()
        random.Random(space.search.seed).shuffle(grid)
        if space.search.order == "longest_first":
            assert training_cost is not None
            grid.sort(key=training_cost, reverse=True)  # points that cost the same stay shuffled
        self._rows = [(point, repeat) for repeat in range(space.search.repeats) for point in grid]
        self._next = 0

    def ask(self, stratum: Stratum, *, explore: bool = False) -> Proposal | None:
        """Propose the next point of the grid, whatever the stratum.

        A grid's sizes are its own.
        """
        if self._next >= len(self._rows):
            return None
        self._next += 1
        point, repeat = self._rows[self._next - 1]
        return Proposal(point, {"index": self._next - 1}, repeat)

    def reask(self, stratum: Stratum, point: dict[str, Value], handle: Handle) -> Proposal:
        """Propose the same point under the same handle."""
        return Proposal(point, handle)

    def tell(self, handle: Handle, outcome: Outcome) -> None:
        """Do nothing: a grid learns nothing."""

    def open_handles(self) -> list[Handle]:
        """Return none: a grid keeps no proposals."""
        return []

    def hide(self, handle: Handle, trial_id: str) -> None:
        """Do nothing: a grid has learned nothing."""


class EmptyProposer(GridProposer):
    """Proposes nothing: the study trains the trials of its journal, and no others."""

    def __init__(self) -> None:
        """Make a grid without rows."""
        self._rows, self._next = [], 0
