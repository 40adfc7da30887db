"""What a study cost: hours of training by outcome, card hours, images per second, time lost to starts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class OutcomeCost:
    """The trials that ended in one way, and the seconds that their epochs took."""

    status: Status
    trials: int
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """Seconds are sums over trials unless said otherwise; None is what the records do not tell."""

    outcomes: tuple[OutcomeCost, ...]
    train_seconds: float  # epochs, evaluation included
    start_seconds: float  # from a worker's take-up to its first step, over all attempts
    attempts: int
    adopted: int  # trials that another study of the series trained; they cost this one nothing
    again: int  # attempts after a trial's first
    gpu_hours: float | None  # training and starts times the share of a card; 0 on CPUs
    gpu_share: float | None
    wall_seconds: float | None  # from the first proposal to the last end: breaks between two sittings included
    images_per_second: float | None  # median over trials of each trial's mean while it trains
    throughput: float | None  # images of all trials over the wall seconds

    @property
    def start_share(self) -> float:
        """Starts over starts and training, 0 to 1."""
        whole = self.start_seconds + self.train_seconds
        return self.start_seconds / whole if whole else 0.0


def study_cost(study: StudyRecord) -> StudyCost:
    """The cost of everything that was trained, broken and failed trials included; adopted ones cost another study."""
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
    own = [trial for trial in trials if trial.status is status]
    return OutcomeCost(
        status=status,
        trials=len(own),
        epochs=sum(len(trial.epochs) for trial in own),
        seconds=math.fsum(metrics.get("epoch_seconds", 0.0) for trial in own for metrics in trial.epochs.values()),
    )


def _gpu_share(study: StudyRecord, trials: Sequence[TrialRecord]) -> float | None:
    """The share of a card that a trial had, the mean over attempts; of old records, what the space gave to each."""
    devices = {attempt["device"] for trial in trials for attempt in trial.attempts if "device" in attempt}
    if devices == {"cpu"} or (not devices and study.header.get("hardware", {}).get("gpus") == []):
        return 0.0
    given = [float(attempt["gpus"]) for trial in trials for attempt in trial.attempts if "gpus" in attempt]
    if given:
        return statistics.fmean(given)
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
