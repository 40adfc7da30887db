"""What a study cost: hours of training by outcome, GPU hours, images per second, time until trials started."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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
        gpu_hours: training and starts times the share of a GPU; 0 on CPUs.
        gpu_share: that a trial had, the mean over attempts.
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
    share, wall = _gpu_share(study, trials), _wall(trials)
    speeds = [speed for trial in trials if (speed := _speed(trial)) is not None]
    images = sum(_images(study, trial) for trial in trials)
    return StudyCost(
        outcomes=outcomes, train_seconds=train, start_seconds=start,
        attempts=sum(len(trial.attempts) for trial in trials),
        adopted=sum(bool(trial.adopted) for trial in study.trials.values()),
        again=sum(max(0, len(trial.attempts) - 1) for trial in trials),
        gpu_hours=None if share is None else share * (train + start) / 3600, gpu_share=share, wall_seconds=wall,
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


def _gpu_share(study: StudyRecord, trials: Sequence[TrialRecord]) -> float | None:
    """The share of a GPU that a trial had, the mean over attempts; for old records the share in the space."""
    devices = {attempt["device"] for trial in trials for attempt in trial.attempts if "device" in attempt}
    if devices == {"cpu"} or (not devices and study.header.get("hardware", {}).get("gpus") == []):
        return 0.0
    shares = [float(attempt["gpus"]) for trial in trials for attempt in trial.attempts if "gpus" in attempt]
    if shares:
        return statistics.fmean(shares)
    resources: dict[str, Any] = study.header.get("space", {}).get("resources") or {}
    share = resources.get("gpus_per_trial")
    return float(share) if share is not None and devices else None


def _wall(trials: Sequence[TrialRecord]) -> float | None:
    begun = [trial.proposed_at for trial in trials if trial.proposed_at is not None]
    ended = [trial.finished_at for trial in trials if trial.finished_at is not None]
    return max(ended) - min(begun) if begun and ended else None


def _speed(trial: TrialRecord) -> float | None:
    speeds = [metrics["images_per_second"] for metrics in trial.epochs.values() if "images_per_second" in metrics]
    return statistics.fmean(speeds) if speeds else None


def _images(study: StudyRecord, trial: TrialRecord) -> float:
    """Training images that the trial saw, by its epochs on record."""
    per_epoch = study.header.get("data", {}).get("train_images")
    return float(per_epoch) * len(trial.epochs) if per_epoch else 0.0
