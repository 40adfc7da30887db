"""Counts over a study's trials, kept up to date: what the driver asks at every turn must not grow with the trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.records import Role, Status, TrialRecord


@dataclass(frozen=True)
class _Contribution:
    """What one trial adds to the counts."""

    open: bool = False
    counts: bool = False
    proposed: int = 0
    stratum: str = ""


class TrialCounters:
    """Open trials, trials by stratum, and the used part of `search.trials`.

    `open` holds the ids of trials without an end, in the order of proposal; `strata` counts trials by stratum;
    `proposed` counts what is used of `search.trials`.
    """

    def __init__(self, trials: Iterable[TrialRecord], *, grid: bool):
        """Count the trials of a record.

        Args:
            trials: the record's trials.
            grid: whether the study trains a grid, of which repeats, and rows that stand for a network already
                proposed, count as proposals too.
        """
        self._roles = (Role.SEARCH, Role.REPEAT) if grid else (Role.SEARCH,)
        self._grid = grid
        self._contributions: dict[str, _Contribution] = {}
        self.open: dict[str, None] = {}  # a dictionary for its order
        self.strata: Counter[str] = Counter()
        self.proposed = 0
        for trial in trials:
            self.update(trial)

    def update(self, trial: TrialRecord) -> None:
        """Count a trial that is new or has changed.

        Args:
            trial: its present record.
        """
        before = self._contributions.get(trial.trial_id, _Contribution())
        after = self._contribution(trial)
        if before == after:
            return
        self._contributions[trial.trial_id] = after
        self.strata[before.stratum] -= before.counts
        self.strata[after.stratum] += after.counts
        self.proposed += after.proposed - before.proposed
        if after.open:
            self.open[trial.trial_id] = None
        else:
            self.open.pop(trial.trial_id, None)

    def _contribution(self, trial: TrialRecord) -> _Contribution:
        # A trial that was never launched, or turned out to be broken, uses nothing of `search.trials`
        counts = trial.status is not Status.INFEASIBLE and not trial.broken
        launched = counts and trial.role in self._roles and bool(trial.proposal)
        rows = 1 + (len(trial.aliases) if self._grid else 0)
        return _Contribution(not trial.ended, counts, rows if launched else 0, trial.stratum)
