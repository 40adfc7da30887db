"""Cuts a study into the runs of its driver: what each of them trained, and what was known when it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeps.records import TERMINAL, Event, Status, StudyEvents, StudyHeader, StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of the driver over a study.

    Attributes:
        number: from 1.
        header: its STUDY event.
        began: seconds since the epoch.
        ended: when the driver closed the study; None where it did not.
        reason: why it ended: finished, time or interrupted; "" where the driver did not close the study.
        next_began: when the next run began; infinity for the last one.
        resources: its RESOURCES event; empty where it was never ready to train.
        annotations: notes and marks of people, from its beginning to that of the next run.
        snapshot: the study as it was when the run ended. Trials that were marked as broken later are marked.
        work: the trials that the run worked on, each with the epochs and attempts of the run alone.
    """

    number: int
    header: StudyHeader
    began: float
    ended: float | None
    reason: str
    next_began: float
    resources: Mapping[str, Any]
    annotations: tuple[Mapping[str, Any], ...]
    snapshot: StudyRecord
    work: StudyRecord

    @property
    def is_last(self) -> bool:
        """Whether no run came after it."""
        return self.next_began == math.inf


def study_runs(history: StudyEvents) -> list[StudyRun]:
    """Cut a study into the runs of its driver.

    Args:
        history: of the study.

    Returns:
        The runs, oldest first.
    """
    headers = [StudyHeader.parse(event) for event in history.events if event["event"] == Event.STUDY]
    starts = [header.began for header in headers]
    runs = []
    for index, header in enumerate(headers):
        # The first run has all that came before: trials of a study that was put together are older than it
        begin = -math.inf if index == 0 else starts[index]
        end = starts[index + 1] if index + 1 < len(starts) else math.inf
        within = [event for event in history.events if begin <= event["time"] < end]
        closed = [event for event in within if event["event"] == Event.CLOSED]
        resources = [event for event in within if event["event"] == Event.RESOURCES]
        alone = len(headers) == 1
        runs.append(StudyRun(
            number=index + 1, header=header, began=starts[index],
            ended=float(closed[-1]["time"]) if closed else None, reason=str(closed[-1]["reason"]) if closed else "",
            next_began=end, resources=resources[-1] if resources else {},
            annotations=tuple(e for e in within if e["event"] in (Event.ANNOTATED, Event.EXCLUDED)),
            snapshot=history.study if end == math.inf else _snapshot(history.study, header, closed, end),
            work=history.study if alone else _work(history.study, header, begin, end),
        ))  # fmt: skip
    return runs


def _snapshot(study: StudyRecord, header: StudyHeader, closed: Sequence[Mapping[str, Any]], end: float) -> StudyRecord:
    """The study as it was just before `end`."""
    looks = [look for look in study.test_looks if look["run"] is None or look["run"] < end]
    tested = {trial_id for look in looks for trial_id in look["trials"]} if study.test_looks else None
    trials = {
        trial.trial_id: _as_of(trial, end, tested) for trial in study.trials.values()
        if trial.proposed_at is None or trial.proposed_at < end
    }  # fmt: skip
    return replace(
        study, header=header, trials=trials, closed=dict(closed[-1]) if closed else None, test_looks=looks,
        runs=[run for run in study.runs if run["time"] < end],
        finished_ends=[time for time in study.finished_ends if time < end],
    )  # fmt: skip


def _as_of(trial: TrialRecord, end: float, tested: set[str] | None) -> TrialRecord:
    looked_at = tested is None or trial.trial_id in tested
    if trial.finished_at is not None and trial.finished_at < end:
        if looked_at or trial.test_error is None:
            return trial
        wrong = {split: bits for split, bits in trial.wrong_images.items() if split != "test"}
        return replace(trial, test_error=None, wrong_images=wrong)
    epochs = {number: metrics for number, metrics in trial.epochs.items() if metrics.get("time", end) < end}
    attempts = [attempt for attempt in trial.attempts if attempt.get("time", end) < end]
    status = trial.status if trial.status not in TERMINAL else Status.RUNNING if attempts else Status.PROPOSED
    return replace(
        trial, epochs=epochs, attempts=attempts, status=status, reason="", finished_at=None, test_error=None,
        wrong_images={},
    )  # fmt: skip


def _work(study: StudyRecord, header: StudyHeader, begin: float, end: float) -> StudyRecord:
    """The trials that were trained, tried or ended from `begin` to `end`."""
    trials = {}
    for trial in study.trials.values():
        epochs = {n: metrics for n, metrics in trial.epochs.items() if begin <= metrics.get("time", end) < end}
        attempts = [attempt for attempt in trial.attempts if begin <= attempt.get("time", end) < end]
        ended = trial.finished_at is not None and begin <= trial.finished_at < end
        if not (epochs or attempts or ended):
            continue
        status = trial.status if ended or trial.status not in TERMINAL else Status.RUNNING
        reason = trial.reason if ended else ""
        trials[trial.trial_id] = replace(trial, epochs=epochs, attempts=attempts, status=status, reason=reason)
    return replace(study, header=header, trials=trials)
