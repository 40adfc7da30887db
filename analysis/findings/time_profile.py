"""Where the time of a study went: the time of every slot, by what it was spent on.

A run of the driver (from the command to its end) has a number of slots, each with the run's wall-clock. What trials and
drivers have timed is taken out of that; the remainder is idle slots. So the parts add up to slots times wall-clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.records import StudyRecord, TrialRecord

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
        prepared: when trials could start.
        trained: when the last of them ended.
        ended: when the command ended.
        slots: how many trials could run side by side.
    """

    began: float
    prepared: float
    trained: float
    ended: float
    slots: int

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock."""
        return self.slots * (self.ended - self.began)


@dataclass(frozen=True, kw_only=True)
class TimeProfile:
    """Where the time of a study went.

    Attributes:
        runs: of the driver.
        seconds: of slots, by part; they add up to those of all runs.
    """

    runs: tuple[DriverRun, ...]
    seconds: dict[str, float]

    @property
    def wall_seconds(self) -> float:
        """Of all runs together."""
        return math.fsum(run.ended - run.began for run in self.runs)

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock, of all runs."""
        return math.fsum(run.slot_seconds for run in self.runs)


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a trial: which worker made it, when it started and when its last epoch ended."""

    worker: tuple[Any, Any]
    begin: float
    end: float
    seconds: dict[str, float]


def profile_study(study: StudyRecord) -> TimeProfile | None:
    """Return where the time of a study went so far.

    Args:
        study: the records.

    Returns:
        The profile; None where the records, of an older version, do not have it.
    """
    stays = sorted((stay for trial in study.trials.values() for stay in _stays(trial)), key=lambda stay: stay.begin)
    runs = tuple(_driver_run(event, _following(study, index), stays) for index, event in enumerate(study.runs))
    if not runs:
        return None
    seconds_by_part = dict.fromkeys(PARTS, 0.0)
    for run in runs:
        of_run = [stay for stay in stays if run.prepared <= stay.end <= run.trained]
        for part, seconds in _parts(run, of_run).items():
            seconds_by_part[part] += seconds
    return TimeProfile(runs=runs, seconds=seconds_by_part)


def _following(study: StudyRecord, index: int) -> float:
    """When the next run began; infinity for the last."""
    later = study.runs[index + 1 :]
    return float(later[0]["time"]) - float(later[0]["since"]) if later else math.inf


def _driver_run(event: dict[str, Any], following: float, stays: Sequence[_Attempt]) -> DriverRun:
    """A driver that was killed ended with the last epoch that it wrote."""
    prepared = float(event["time"])
    trained = max((stay.end for stay in stays if prepared <= stay.end < following), default=prepared)
    ended = max(trained, float(event.get("closed") or trained))
    return DriverRun(
        began=prepared - float(event["since"]), prepared=prepared, trained=trained, ended=ended, slots=event["slots"]
    )


def _stays(trial: TrialRecord) -> Iterator[_Attempt]:
    """The attempts that reached an epoch, each with those of its epochs that were not trained again.

    An attempt is on record from its first epoch on. It began earlier by the time of that epoch and of its set-up.
    """
    starts = [float(attempt["time"]) for attempt in trial.attempts if "time" in attempt]
    for attempt, start, following in zip(trial.attempts, starts, [*starts[1:], math.inf], strict=False):
        epochs = [epoch for epoch in trial.epochs.values() if start <= epoch.get("time", 0.0) < following]
        if not epochs:
            continue
        set_up = float(attempt.get("start_seconds", 0.0))
        first = min(epochs, key=lambda epoch: epoch["time"])
        begin = first["time"] - first.get("epoch_seconds", 0.0) - first.get("report_seconds", 0.0) - set_up
        worker = (attempt.get("host"), attempt.get("pid"))
        yield _Attempt(worker, begin, max(epoch["time"] for epoch in epochs), {SET_UP: set_up, **_epochs(epochs)})


def _epochs(epochs: Sequence[dict[str, float]]) -> dict[str, float]:
    def total(name: str) -> float:
        return math.fsum(epoch.get(name, 0.0) for epoch in epochs)

    parts = {COMPILE: total("compile_seconds"), INPUT: total("input_seconds"), VALIDATION: total("eval_seconds")}
    step = total("epoch_seconds") - math.fsum(parts.values())
    return {**parts, STEP: step, REPORTS: total("report_seconds")}


def _parts(run: DriverRun, stays: Sequence[_Attempt]) -> dict[str, float]:
    seconds_by_part = dict.fromkeys(PARTS, 0.0)
    seconds_by_part[DRIVER] = run.slots * (run.prepared - run.began)
    seconds_by_part[CLOSING] = run.slots * (run.ended - run.trained)
    first: dict[tuple[Any, Any], float] = {}
    for stay in stays:
        first.setdefault(stay.worker, stay.begin)
        for part, seconds in stay.seconds.items():
            seconds_by_part[part] += seconds
    earliest = sorted(first.values())[: run.slots]  # later ones replace workers that were lost
    seconds_by_part[WORKERS] = math.fsum(max(0.0, begin - run.prepared) for begin in earliest)
    seconds_by_part[IDLE] = run.slot_seconds - math.fsum(seconds_by_part.values())
    return seconds_by_part


def profile_lines(profile: TimeProfile | None) -> list[str]:
    """Return the profile as lines of text.

    Args:
        profile: of a study; None for one without records of time.

    Returns:
        A headline, then a line a part.
    """
    if profile is None:
        return ["where the time went is not on record: an older version wrote this study, or nothing has been trained"]
    count = len(profile.runs)
    slots = ", ".join(str(run.slots) for run in profile.runs)
    head = (
        f"where the time went: {profile.slot_seconds:,.0f} s of slots ({slots} slots, {profile.wall_seconds:,.0f} s of "
        f"wall-clock in {count} run{'s' if count > 1 else ''})"
    )
    total = profile.slot_seconds or 1.0
    width = max(map(len, PARTS))
    return [head] + [
        f"  {part:{width}} {seconds:>10,.1f} s {100 * seconds / total:>5.1f} %"
        for part, seconds in profile.seconds.items()
    ]
