"""Counts over a study's trials, kept as they change: what the driver asks at every turn must not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.records.events import Role, Status
from sweeps.records.model import TrialRecord


@dataclass(frozen=True)
class _Part:
    """What one trial adds to the counts."""

    open: bool = False
    counts: bool = False
    proposed: int = 0
    stratum: str = ""


class TrialCounters:
    """`open`: ids of the trials without an end. `strata`: trials by stratum. `proposed`: used of `search.trials`."""

    def __init__(self, trials: Iterable[TrialRecord], *, grid: bool):
        """On a `grid` repeats, and rows that stand for a network already proposed, are proposals too."""
        self._roles = (Role.SEARCH, Role.REPEAT) if grid else (Role.SEARCH,)
        self._grid = grid
        self._parts: dict[str, _Part] = {}
        self.open: dict[str, None] = {}  # in the order of proposal
        self.strata: Counter[str] = Counter()
        self.proposed = 0
        for trial in trials:
            self.update(trial)

    def update(self, trial: TrialRecord) -> None:
        """A trial is new or has changed."""
        before, after = self._parts.get(trial.trial_id, _Part()), self._part(trial)
        if before == after:
            return
        self._parts[trial.trial_id] = after
        self.strata[before.stratum] -= before.counts
        self.strata[after.stratum] += after.counts
        self.proposed += after.proposed - before.proposed
        if after.open:
            self.open[trial.trial_id] = None
        else:
            self.open.pop(trial.trial_id, None)

    def _part(self, trial: TrialRecord) -> _Part:
        # One that was never launched, or turned out to be broken, leaves its room to another
        counts = trial.status is not Status.INFEASIBLE and not trial.broken
        launched = counts and trial.role in self._roles and bool(trial.proposal)
        rows = 1 + (len(trial.aliases) if self._grid else 0)
        return _Part(not trial.ended, counts, rows if launched else 0, trial.stratum)
