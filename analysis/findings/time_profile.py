"""Where the time of a study went: the seconds of all slots, by what they were spent on.

A slot is a place for one running trial. A run of the driver (from the command to its end) has a number of slots, each
for the wall-clock time of the run. Trials and the driver time their own parts; the remaining seconds are idle slots. So
the parts add up to slots times wall-clock time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lowrank.utils import format_counted
from sweeps.records import EventFields, StudyRecord, TrialRecord

DRIVER, WORKERS, SET_UP, COMPILE, INPUT, STEP, VALIDATION, REPORTS, CLOSING, IDLE = (
    "the driver starts: imports, images, cluster, shares measured", "workers start: processes, imports",
    "trials are set up: images, network, checkpoint", "compilation and recording", "input: batches and their views",
    "training steps", "validation", "reports and checkpoints", "the end: test errors, picture, table", "idle slots",
)  # fmt: skip
PARTS = (DRIVER, WORKERS, SET_UP, COMPILE, INPUT, STEP, VALIDATION, REPORTS, CLOSING, IDLE)


@dataclass(frozen=True, kw_only=True)
class DriverRun:
    """One run of the driver, times in seconds since the epoch.

    Attributes:
        began: when the command started.
        prepared: when the first trial could start.
        first_step: when the first training step began; infinity where there was none.
        trained: when the last epoch of any trial ended.
        ended: when the command ended.
        slots: how many trials could run at once.
        beyond: seconds of trials that ran beside so many, because the number was not decided yet.
    """

    began: float
    prepared: float
    first_step: float
    trained: float
    ended: float
    slots: int
    beyond: float = 0.0

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock, and what ran beyond."""
        return self.slots * (self.ended - self.began) + self.beyond


@dataclass(frozen=True, kw_only=True)
class TimeProfile:
    """Where the time of a study went.

    Attributes:
        runs: the driver's runs over the study, in order.
        seconds: seconds of slots by part, one of `PARTS`; their sum is `slot_seconds`.
    """

    runs: tuple[DriverRun, ...]
    seconds: dict[str, float]

    @property
    def wall_seconds(self) -> float:
        """Wall-clock time of all runs together."""
        return math.fsum(run.ended - run.began for run in self.runs)

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock time, summed over the runs."""
        return math.fsum(run.slot_seconds for run in self.runs)


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a trial: its worker, when it started, trained first, ended its last epoch, and seconds by part."""

    worker: tuple[Any, Any]  # host and process id
    begin: float
    first_step: float
    end: float
    seconds: dict[str, float]


def profile_study(study: StudyRecord) -> TimeProfile | None:
    """Return where the time of a study went so far.

    Args:
        study: the records.

    Returns:
        The profile; None where nothing was trained, or an older version wrote the records.
    """
    attempts = [attempt for trial in study.trials.values() for attempt in _attempts(trial)]
    attempts.sort(key=lambda attempt: attempt.begin)
    runs = tuple(_driver_run(event, _next_begin(study, index), attempts) for index, event in enumerate(study.runs))
    if not runs:
        return None
    seconds_by_part = dict.fromkeys(PARTS, 0.0)
    for run in runs:
        attempts_of_run = [attempt for attempt in attempts if run.prepared <= attempt.end <= run.trained]
        for part, seconds in _run_seconds(run, attempts_of_run).items():
            seconds_by_part[part] += seconds
    return TimeProfile(runs=runs, seconds=seconds_by_part)


def _next_begin(study: StudyRecord, index: int) -> float:
    """Return when the run after run `index` began; infinity for the last run."""
    return _begin(study.runs[index + 1]) if index + 1 < len(study.runs) else math.inf


def _begin(event: EventFields) -> float:
    """Return when a run began. Its event is written when trials can start, `since` seconds after the command."""
    return float(event["time"]) - float(event["since"])


def _driver_run(event: EventFields, next_begin: float, attempts: Sequence[_Attempt]) -> DriverRun:
    """Make a run from its event. One without the time when it `closed` was killed, and ends with its last epoch."""
    prepared = float(event["time"])
    of_run = [attempt for attempt in attempts if prepared <= attempt.end < next_begin]
    trained = max((attempt.end for attempt in of_run), default=prepared)
    first_step = min((attempt.first_step for attempt in of_run), default=math.inf)
    ended = max(trained, float(event.get("closed") or trained))
    decided = "decided_slots" in event
    slots = int(event["decided_slots"] if decided else event["slots"])
    beyond = _seconds_beyond(slots, of_run) if decided else 0.0
    return DriverRun(
        began=_begin(event), prepared=prepared, first_step=first_step, trained=trained, ended=ended, slots=slots,
        beyond=beyond,
    )  # fmt: skip


def _seconds_beyond(slots: int, attempts: Sequence[_Attempt]) -> float:
    """Sum the seconds of the attempts that ran beside `slots` others."""
    changes = sorted([(attempt.begin, 1) for attempt in attempts] + [(attempt.end, -1) for attempt in attempts])
    seconds, running = 0.0, 0
    for (at, change), (until, _) in pairwise(changes):
        running += change
        seconds += max(0, running - slots) * (until - at)
    return seconds


def _attempts(trial: TrialRecord) -> Iterator[_Attempt]:
    """Yield the attempts that completed an epoch.

    The record keeps the last training of each epoch, so an epoch that a later attempt trained again is not counted for
    the earlier one. The event of an attempt is written with its first epoch; the attempt began earlier by the time of
    that epoch and of its set-up.
    """
    starts = [float(event["time"]) for event in trial.attempts if "time" in event]
    # Not strict: attempts in records of older versions have no time
    for event, start, next_start in zip(trial.attempts, starts, [*starts[1:], math.inf], strict=False):
        epochs = [epoch for epoch in trial.epochs.values() if start <= epoch.get("time", 0.0) < next_start]
        if not epochs:
            continue
        set_up = float(event.get("start_seconds", 0.0))
        first = min(epochs, key=lambda epoch: epoch["time"])
        begin = first["time"] - first.get("epoch_seconds", 0.0) - first.get("report_seconds", 0.0) - set_up
        worker = (event.get("host"), event.get("pid"))
        first_step = first["time"] - first.get("epoch_seconds", 0.0) + first.get("compile_seconds", 0.0)
        yield _Attempt(
            worker,
            begin,
            first_step,
            max(epoch["time"] for epoch in epochs),
            {SET_UP: set_up, **_epoch_seconds(epochs)},
        )


def _epoch_seconds(epochs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Sum the timings of epochs by part; the steps get what the other parts leave of `epoch_seconds`."""

    def total(name: str) -> float:
        return math.fsum(epoch.get(name, 0.0) for epoch in epochs)

    compiling = total("compile_seconds") + total("eval_compile_seconds")
    parts = {COMPILE: compiling, INPUT: total("input_seconds"), VALIDATION: total("eval_seconds")}
    step = total("epoch_seconds") - math.fsum(parts.values())
    return {**parts, STEP: step, REPORTS: total("report_seconds")}


def _run_seconds(run: DriverRun, attempts: Sequence[_Attempt]) -> dict[str, float]:
    """Divide the seconds of a run's slots into parts; `attempts` are the run's, in the order of their begin."""
    seconds_by_part = dict.fromkeys(PARTS, 0.0)
    seconds_by_part[DRIVER] = run.slots * (run.prepared - run.began)
    seconds_by_part[CLOSING] = run.slots * (run.ended - run.trained)
    first_begins: dict[tuple[Any, Any], float] = {}  # by worker
    for attempt in attempts:
        first_begins.setdefault(attempt.worker, attempt.begin)
        for part, seconds in attempt.seconds.items():
            seconds_by_part[part] += seconds
    earliest = sorted(first_begins.values())[: run.slots]  # later ones replace workers that were lost
    seconds_by_part[WORKERS] = math.fsum(max(0.0, begin - run.prepared) for begin in earliest)
    seconds_by_part[IDLE] = run.slot_seconds - math.fsum(seconds_by_part.values())
    return seconds_by_part


def profile_lines(profile: TimeProfile | None) -> list[str]:
    """Return the profile as lines of text.

    Args:
        profile: of a study; None where the study has no timings.

    Returns:
        A headline, then one line for each part.
    """
    if profile is None:
        return ["where the time went is not on record: an older version wrote this study, or nothing has been trained"]
    count = len(profile.runs)
    slots = ", ".join(str(run.slots) for run in profile.runs)
    head = (
        f"where the time went: {profile.slot_seconds:,.0f} s of slots ({slots} slots, {profile.wall_seconds:,.0f} s of "
        f"wall-clock in {format_counted(count, 'run')})"
    )
    total = profile.slot_seconds or 1.0  # not 0, by which the shares could not be divided
    width = max(map(len, PARTS))
    starts = ", ".join(f"{run.first_step - run.began:,.1f}" for run in profile.runs if math.isfinite(run.first_step))
    ends = ", ".join(f"{run.ended - run.trained:,.1f}" for run in profile.runs)
    return [
        head,
        *(
            f"  {part:{width}} {seconds:>10,.1f} s {100 * seconds / total:>5.1f} %"
            for part, seconds in profile.seconds.items()
        ),
        f"from the command to the first step {starts or '-'} s; from the last epoch to the end {ends} s",
    ]
