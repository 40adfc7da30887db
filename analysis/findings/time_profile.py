"""Where the time of a study went: every slot's every second, by what it was spent on.

A sitting (from the command to its end) has so many slots, each with its wall-clock; what trials and drivers have timed
is taken out of that, and the remainder is slots that stood idle. So the parts add up to slots times wall-clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.records.model import StudyRecord, TrialRecord

DRIVER, WORKERS, SET_UP, COMPILE, INPUT, STEP, VALIDATION, REPORTS, CLOSING, IDLE = (
    "the driver starts: imports, images, cluster, shares measured", "workers start: processes, imports",
    "trials are set up: images, network, checkpoint", "compilation and recording", "input: batches and their views",
    "training steps", "validation", "reports and checkpoints", "the end: test errors, picture, table", "idle slots",
)  # fmt: skip
PARTS = (DRIVER, WORKERS, SET_UP, COMPILE, INPUT, STEP, VALIDATION, REPORTS, CLOSING, IDLE)


@dataclass(frozen=True, kw_only=True)
class DriverRun:
    """One run of the driver, times in seconds since the epoch: training is between `ready` and `trained`."""

    began: float
    ready: float
    trained: float
    ended: float
    slots: int

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock."""
        return self.slots * (self.ended - self.began)


@dataclass(frozen=True, kw_only=True)
class TimeProfile:
    """Seconds of slots by part; their sum is that of all sittings."""

    sittings: tuple[DriverRun, ...]
    seconds: dict[str, float]

    @property
    def wall_seconds(self) -> float:
        """Of all sittings together."""
        return math.fsum(sitting.ended - sitting.began for sitting in self.sittings)

    @property
    def slot_seconds(self) -> float:
        """Slots times wall-clock, of all sittings."""
        return math.fsum(sitting.slot_seconds for sitting in self.sittings)


@dataclass(frozen=True)
class _Stay:
    """One attempt at a trial: who made it, when it was taken up and when its last epoch was done."""

    worker: tuple[Any, Any]
    begin: float
    end: float
    seconds: dict[str, float]


def profile_study(study: StudyRecord) -> TimeProfile | None:
    """Of a study's sittings so far; None where its records, of an older version, do not tell."""
    stays = sorted((stay for trial in study.trials.values() for stay in _stays(trial)), key=lambda stay: stay.begin)
    sittings = tuple(_sitting(room, _following(study, index), stays) for index, room in enumerate(study.runs))
    if not sittings:
        return None
    found = dict.fromkeys(PARTS, 0.0)
    for sitting in sittings:
        mine = [stay for stay in stays if sitting.ready <= stay.end <= sitting.trained]
        for part, seconds in _parts(sitting, mine).items():
            found[part] += seconds
    return TimeProfile(sittings=sittings, seconds=found)


def _following(study: StudyRecord, index: int) -> float:
    """When the next sitting began; endless for the last."""
    later = study.runs[index + 1 :]
    return float(later[0]["time"]) - float(later[0]["since"]) if later else math.inf


def _sitting(room: dict[str, Any], following: float, stays: Sequence[_Stay]) -> DriverRun:
    """A driver that was killed ended with the last epoch that it wrote."""
    ready = float(room["time"])
    trained = max((stay.end for stay in stays if ready <= stay.end < following), default=ready)
    ended = max(trained, float(room.get("closed") or trained))
    return DriverRun(began=ready - float(room["since"]), ready=ready, trained=trained, ended=ended, slots=room["slots"])


def _stays(trial: TrialRecord) -> Iterator[_Stay]:
    """The attempts that came as far as an epoch, each with the epochs that it trained and that were not trained again.

    An attempt is on record from its first epoch on, so it began so much earlier as that and its set-up took.
    """
    starts = [float(attempt["time"]) for attempt in trial.attempts if "time" in attempt]
    for attempt, start, following in zip(trial.attempts, starts, [*starts[1:], math.inf], strict=False):
        own = [each for each in trial.epochs.values() if start <= each.get("time", 0.0) < following]
        if not own:
            continue
        set_up = float(attempt.get("start_seconds", 0.0))
        first = min(own, key=lambda each: each["time"])
        begin = first["time"] - first.get("epoch_seconds", 0.0) - first.get("report_seconds", 0.0) - set_up
        worker = (attempt.get("host"), attempt.get("pid"))
        yield _Stay(worker, begin, max(each["time"] for each in own), {SET_UP: set_up, **_epochs(own)})


def _epochs(own: Sequence[dict[str, float]]) -> dict[str, float]:
    def total(name: str) -> float:
        return math.fsum(each.get(name, 0.0) for each in own)

    apart = {COMPILE: total("compile_seconds"), INPUT: total("input_seconds"), VALIDATION: total("eval_seconds")}
    step = total("epoch_seconds") - math.fsum(apart.values())
    return {**apart, STEP: step, REPORTS: total("report_seconds")}


def _parts(sitting: DriverRun, stays: Sequence[_Stay]) -> dict[str, float]:
    found = dict.fromkeys(PARTS, 0.0)
    found[DRIVER] = sitting.slots * (sitting.ready - sitting.began)
    found[CLOSING] = sitting.slots * (sitting.ended - sitting.trained)
    first: dict[tuple[Any, Any], float] = {}
    for stay in stays:
        first.setdefault(stay.worker, stay.begin)
        for part, seconds in stay.seconds.items():
            found[part] += seconds
    earliest = sorted(first.values())[: sitting.slots]  # later ones stand in for workers that were lost
    found[WORKERS] = math.fsum(max(0.0, begin - sitting.ready) for begin in earliest)
    found[IDLE] = sitting.slot_seconds - math.fsum(found.values())
    return found


def profile_lines(found: TimeProfile | None) -> list[str]:
    """The profile as lines of text."""
    if found is None:
        return ["where the time went is not on record: an older version wrote this study, or nothing has been trained"]
    count = len(found.sittings)
    slots = ", ".join(str(sitting.slots) for sitting in found.sittings)
    head = (
        f"where the time went: {found.slot_seconds:,.0f} s of slots ({slots} slots, {found.wall_seconds:,.0f} s of "
        f"wall-clock in {count} sitting{'s' if count > 1 else ''})"
    )
    whole = found.slot_seconds or 1.0
    width = max(map(len, PARTS))
    return [head] + [
        f"  {part:{width}} {seconds:>10,.1f} s {100 * seconds / whole:>5.1f} %"
        for part, seconds in found.seconds.items()
    ]
