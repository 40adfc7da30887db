"""What a study cost: hours of training by outcome, GPU hours, images per second, time until trials started."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.records import Status, StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class OutcomeCost:
    """The trials that ended in one way.

    Attributes:
        status: how they ended.
        trials: how many there are.
        epochs: that they trained.
        seconds: that their epochs took.
    """

    status: Status
    trials: int
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """What a study cost.

    Seconds are sums over trials unless said otherwise; None is what the records do not have.

    Attributes:
        outcomes: by status.
        train_seconds: of epochs, evaluation included.
        start_seconds: from a worker receiving a trial to its first step, over all attempts.
        attempts: how many there were.
        adopted: trials that another study of the series trained; they cost this one nothing.
        again: attempts after a trial's first.
        gpu_hours: the share of a GPU times the seconds of training and start, summed over attempts; 0 on CPUs.
        gpu_share: that a trial had, the mean over the seconds of all attempts.
        wall_seconds: from the first proposal to the last end, breaks between two runs included.
        images_per_second: median over trials of each trial's mean while it trains.
        throughput: images of all trials over the wall seconds.
    """

    outcomes: tuple[OutcomeCost, ...]
    train_seconds: float
    start_seconds: float
    attempts: int
    adopted: int
    again: int
    gpu_hours: float | None
    gpu_share: float | None
    wall_seconds: float | None
    images_per_second: float | None
    throughput: float | None

    @property
    def start_share(self) -> float:
        """Starts over starts and training, 0 to 1."""
        total = self.start_seconds + self.train_seconds
        return self.start_seconds / total if total else 0.0


def study_cost(study: StudyRecord) -> StudyCost:
    """Return the cost of all that a study trained, failed trials included.

    Args:
        study: the records; trials that were adopted from another study cost that one.

    Returns:
        The cost.
    """
    trials = [trial for trial in study.trials.values() if (trial.epochs or trial.attempts) and not trial.adopted]
    outcomes = tuple(_outcome(status, trials) for status in Status if any(t.status is status for t in trials))
    train = sum(outcome.seconds for outcome in outcomes)
    start = sum(attempt.get("start_seconds", 0.0) for trial in trials for attempt in trial.attempts)
    gpu_seconds, wall = _gpu_seconds(study, trials), _wall(trials)
    speeds = [speed for trial in trials if (speed := _speed(trial)) is not None]
    images = sum(_images(study, trial) for trial in trials)
    return StudyCost(
        outcomes=outcomes, train_seconds=train, start_seconds=start,
        attempts=sum(len(trial.attempts) for trial in trials),
        adopted=sum(bool(trial.adopted) for trial in study.trials.values()),
        again=sum(max(0, len(trial.attempts) - 1) for trial in trials),
        gpu_hours=None if gpu_seconds is None else gpu_seconds / 3600,
        gpu_share=None if gpu_seconds is None or train + start == 0 else gpu_seconds / (train + start),
        wall_seconds=wall,
        images_per_second=statistics.median(speeds) if speeds else None,
        throughput=images / wall if wall and images else None,
    )  # fmt: skip


def _outcome(status: Status, trials: Sequence[TrialRecord]) -> OutcomeCost:
    ended = [trial for trial in trials if trial.status is status]
    return OutcomeCost(
        status=status,
        trials=len(ended),
        epochs=sum(len(trial.epochs) for trial in ended),
        seconds=math.fsum(metrics.get("epoch_seconds", 0.0) for trial in ended for metrics in trial.epochs.values()),
    )


def _gpu_seconds(study: StudyRecord, trials: Sequence[TrialRecord]) -> float | None:
    """GPU share times seconds, attempt by attempt: a trial may have had other shares, or none, in later attempts.

    An epoch belongs to the attempt that began last before it. None where a share is not on record.
    """
    if not any("device" in attempt for trial in trials for attempt in trial.attempts):
        return 0.0 if study.header.hardware.gpus == () else None
    total = 0.0
    for trial in trials:
        attempts = trial.attempts or [{}]
        seconds = [float(attempt.get("start_seconds", 0.0)) for attempt in attempts]
        for metrics in trial.epochs.values():
            seconds[_attempt_of(attempts, metrics.get("time"))] += metrics.get("epoch_seconds", 0.0)
        for attempt, spent in zip(attempts, seconds, strict=True):
            share = _gpu_share(study, attempt)
            if share is None and spent:
                return None
            total += (share or 0.0) * spent
    return total


def _attempt_of(attempts: Sequence[Mapping[str, Any]], time: float | None) -> int:
    """The index of the attempt that trained an epoch; the last one where times are not on record."""
    if time is None or not all("time" in attempt for attempt in attempts):
        return len(attempts) - 1
    return max((index for index, attempt in enumerate(attempts) if attempt["time"] <= time), default=0)


def _gpu_share(study: StudyRecord, attempt: Mapping[str, Any]) -> float | None:
    """The share of a GPU that an attempt had; of an old record that of the space."""
    if attempt.get("device") == "cpu":
        return 0.0
    if "gpus" in attempt:
        return float(attempt["gpus"])
    share = study.header.section("resources").get("gpus_per_trial")
    return float(share) if isinstance(share, int | float) else None


def _wall(trials: Sequence[TrialRecord]) -> float | None:
    begun = [trial.proposed_at for trial in trials if trial.proposed_at is not None]
    ended = [trial.finished_at for trial in trials if trial.finished_at is not None]
    return max(ended) - min(begun) if begun and ended else None


def _speed(trial: TrialRecord) -> float | None:
    speeds = [metrics["images_per_second"] for metrics in trial.epochs.values() if "images_per_second" in metrics]
    return statistics.fmean(speeds) if speeds else None


def _images(study: StudyRecord, trial: TrialRecord) -> float:
    """Training images that the trial saw, by its epochs on record."""
    per_epoch = study.header.data.train_images
    return float(per_epoch) * len(trial.epochs) if per_epoch else 0.0
