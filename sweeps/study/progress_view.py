"""What the user sees while a study runs: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lowrank.utils import format_counted
from sweeps.records import TERMINAL, Role, Status, StudyRecord, TrialRecord
from sweeps.utils import format_duration

PLAIN_SECONDS = 15.0  # between plain lines without news
MIN_SECONDS = 0.25  # between two updates
MAX_TIME_SHARE = 0.05  # of the driver's time that updates may take, however many trials there are
_SHORT = {
    Status.COMPLETED: "completed", Status.STOPPED: "stopped early", Status.DIVERGED: "diverged",
    Status.OUT_OF_MEMORY: "out of memory", Status.FAILED: "failed", Status.INFEASIBLE: "infeasible",
    Status.RUNNING: "running", Status.PROPOSED: "waiting",
}  # fmt: skip
_ERRORS = (Status.FAILED, Status.OUT_OF_MEMORY, Status.DIVERGED)  # the user wants to know why, and of which trial


@dataclass(frozen=True)
class Progress:
    """The numbers behind the view; times in seconds, errors in percent."""

    counts: dict[Status, int]
    ended: int
    work: float  # trials that took time of this study, those under way by the share of their epochs
    total: int
    best: tuple[TrialRecord, ...]  # the best finished trial of each stratum, smallest stratum first
    elapsed: float
    remaining: float | None


def progress(record: StudyRecord, total: int, started: float, work_before: float, now: float) -> Progress:
    """Count trials and estimate the remaining time.

    There is an estimate once the work of a whole trial has been done.

    Args:
        record: the study.
        total: how many trials there will be, as far as is known.
        started: when this run of the driver began, by the clock of `now`.
        work_before: the work that was done before it, in trials.
        now: the present time, in seconds.

    Returns:
        The numbers to show.
    """
    trials = list(record.trials.values())
    counts = Counter(trial.status for trial in trials)
    done = [trial for trial in trials if trial.status in TERMINAL and trial.status is not Status.INFEASIBLE]
    ended, elapsed = len(done), now - started
    under_way = sum(_share_done(trial) for trial in trials if trial.status not in TERMINAL)
    work = sum(not trial.adopted for trial in done) + under_way
    work_now = work - work_before
    remaining = elapsed / work_now * max(0.0, total - ended - under_way) if work_now >= 1 else None
    return Progress(dict(counts), ended, work, total, _best(trials), elapsed, remaining)


def _share_done(trial: TrialRecord) -> float:
    epochs = trial.specification.train.epochs if trial.specification else 0
    return min(1.0, trial.last_epoch / epochs) if epochs else 0.0


def _best(trials: list[TrialRecord]) -> tuple[TrialRecord, ...]:
    best: dict[str, TrialRecord] = {}
    for trial in trials:
        if trial.status is not Status.COMPLETED or trial.role is not Role.SEARCH or trial.val_error is None:
            continue
        if trial.broken:
            continue
        leader = best.get(trial.stratum)
        if leader is None or (trial.val_error, trial.counts["params"]) < (leader.val_error, leader.counts["params"]):
            best[trial.stratum] = trial
    return tuple(sorted(best.values(), key=lambda trial: trial.counts["params"]))


def summary_line(shown: Progress) -> str:
    """Write one line: ended trials, trials by status, the remaining time.

    Args:
        shown: the numbers.

    Returns:
        The line.
    """
    parts = [f"{shown.ended}/{format_counted(shown.total, 'trial')}"]
    parts += [
        f"{shown.counts[status]} {_SHORT[status]}"
        for status in (Status.RUNNING, Status.STOPPED, Status.DIVERGED, Status.OUT_OF_MEMORY, Status.FAILED)
        if shown.counts.get(status)
    ]
    remaining = "time left unknown" if shown.remaining is None else f"about {format_duration(shown.remaining)} left"
    return ", ".join(parts) + f"; {format_duration(shown.elapsed)} elapsed, {remaining}"


def describe(trial: TrialRecord, *, with_seed: bool = False) -> str:
    """Describe a trial in a few words: method, shape, size, error.

    Args:
        trial: the trial.
        with_seed: name its seed, by which alone trials of one setting differ.

    Returns:
        E.g. `tensor_train 3 dims rank scale 0.4, 85,000 parameters: 12.50 % validation error`.
    """
    assert trial.specification is not None  # it has been trained
    method, allocation = trial.specification.method, trial.specification.allocation
    shape = [f"{method.dims} dims"] if method.dims is not None else []
    shape += [f"rank scale {method.rank_scale:g}"] if method.rank_scale is not None else []
    error = "" if trial.val_error is None else f": {trial.val_error:.2f} % validation error"
    shape += [f"by {allocation.by}"] if allocation is not None else []
    seed = f"seed {trial.seed}, " if with_seed else ""
    return f"{' '.join([trial.method, *shape])}, {seed}{trial.counts['params']:,} parameters{error}"


class ProgressView:
    """Shows a study's progress; use it as a context manager.

    Call `update` whenever something changed.
    """

    def __init__(self, record: StudyRecord, total: Callable[[], int], console: Console | None = None):
        """Prepare the view.

        Args:
            record: the study, which changes while the view is shown.
            total: returns how many trials there will be, as far as is known.
            console: where to show it; None for standard output.
        """
        self.record, self.total = record, total
        self.console = console or Console()
        self.started = time.monotonic()
        self.work_before = progress(record, 0, 0, 0, 0).work
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self._notices_shown = {name: len(trial.notices) for name, trial in record.trials.items()}
        self._trials_shown: set[str] = {name for name, trial in record.trials.items() if trial.status in TERMINAL}
        self._last_line = self.started
        self._next_update = self.started

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._show()
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Show the record as it is now, unless that was done a moment ago."""
        begun = time.monotonic()
        if begun >= self._next_update:
            self._show()
            seconds = time.monotonic() - begun
            self._next_update = begun + max(MIN_SECONDS, seconds / MAX_TIME_SHARE)

    def print_line(self, text: str) -> None:
        """Print a line above the panel, as it stands.

        Args:
            text: the line.
        """
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        self._show_notices()
        shown = progress(self.record, self.total(), self.started, self.work_before, time.monotonic())
        if self._live is not None:
            self._live.update(_panel(shown))
        else:
            self._lines(shown)

    def _show_notices(self) -> None:
        for name, trial in self.record.trials.items():
            for text in trial.notices[self._notices_shown.get(name, 0) :]:
                self.print_line(text)
            self._notices_shown[name] = len(trial.notices)

    def _lines(self, shown: Progress) -> None:
        several = len({trial.seed for trial in self.record.trials.values()}) > 1
        ended = [name for name, trial in self.record.trials.items() if trial.status in TERMINAL]
        new = [self.record.trials[name] for name in ended if name not in self._trials_shown]
        self._trials_shown.update(ended)
        counted = [trial for trial in new if trial.status is not Status.INFEASIBLE]
        for number, trial in enumerate(counted, shown.ended - len(counted) + 1):
            how = "adopted" if trial.adopted else _SHORT[trial.status]
            why = f"; trial {trial.trial_id[:6]}: {trial.reason}" if trial.status in _ERRORS else ""
            self.print_line(f"{how:13} {describe(trial, with_seed=several)} [{number}/{shown.total}]{why}")
        if time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.print_line(summary_line(shown))


def _panel(shown: Progress) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("trials", summary_line(shown))
    for index, trial in enumerate(shown.best):
        grid.add_row("best so far" if index == 0 else "", f"{trial.stratum}:  {describe(trial)}")
    return grid
