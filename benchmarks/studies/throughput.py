"""Images a second of a whole study, from its journal: what trials that share a card reach together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from sweeps.records.model import StudyRecord, TrialRecord


@dataclass(frozen=True)
class Span:
    """An epoch: when it began and ended (seconds since the epoch) and how many training images it took."""

    trial: str
    begin: float
    end: float
    images: int

    def images_within(self, begin: float, end: float) -> float:
        """Its images that fall between two times, if it goes at an even pace."""
        overlap = min(self.end, end) - max(self.begin, begin)
        return self.images * max(0.0, overlap) / (self.end - self.begin) if self.end > self.begin else 0.0


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Images of training a second; epochs include their evaluation, `own_speeds` (as trials report them) do not."""

    overall: float | None  # between the first and the last epoch's end
    full: float | None  # while as many trials ran as ever ran at once
    full_seconds: float
    most_at_once: int
    own_speed_mean: float | None
    epoch_seconds_mean: float | None
    epoch_seconds_median: float | None
    first_epoch_seconds: float | None  # mean over trials: warm-up is in it
    epochs: int

    def lines(self) -> list[tuple[str, float | None, str]]:
        """(what, value, unit), for a table."""
        return [
            (f"all images, {self.most_at_once} trials at once ({self.full_seconds:.0f} s)", self.full, "images/s"),
            ("all images, first epoch's end to last", self.overall, "images/s"),
            ("mean of what an epoch reports (training alone)", self.own_speed_mean, "images/s"),
            ("that, times the trials at once", self._together(), "images/s"),
            ("mean epoch with its evaluation", self.epoch_seconds_mean, "s"),
            ("median epoch with its evaluation", self.epoch_seconds_median, "s"),
            ("mean first epoch of a trial", self.first_epoch_seconds, "s"),
            ("epochs", self.epochs, ""),
        ]

    def _together(self) -> float | None:
        return None if self.own_speed_mean is None else self.own_speed_mean * self.most_at_once


def images_an_epoch(record: StudyRecord, trial: TrialRecord) -> int:
    """Training images of one epoch: an incomplete last batch is left out, unless it is the only one."""
    images, size = record.header.data.train_images or 0, trial.specification.train.batch_size
    return images // size * size or images


def spans(record: StudyRecord) -> list[Span]:
    """Every epoch of the study, in order of its end."""
    found = [
        Span(name, metrics["time"] - metrics["epoch_seconds"], metrics["time"], images_an_epoch(record, trial))
        for name, trial in record.trials.items()
        for metrics in trial.epochs.values()
    ]
    return sorted(found, key=lambda span: span.end)


def pieces(epochs: list[Span]) -> list[tuple[float, float, int]]:
    """The study cut where a trial begins or ends: (begin, end, trials that are under way)."""
    trials = [[span for span in epochs if span.trial == name] for name in {span.trial for span in epochs}]
    lives = [(min(span.begin for span in spans), max(span.end for span in spans)) for spans in trials]
    cuts = sorted({time for life in lives for time in life})
    return [(begin, end, sum(life[0] <= begin and end <= life[1] for life in lives)) for begin, end in pairwise(cuts)]


def _speed(epochs: list[Span], windows: list[tuple[float, float]]) -> tuple[float | None, float]:
    """Images a second within the windows, and how long those are together."""
    seconds = sum(end - begin for begin, end in windows)
    images = sum(span.images_within(begin, end) for span in epochs for begin, end in windows)
    return (images / seconds if seconds > 0 else None), seconds


def throughput(record: StudyRecord) -> Throughput:
    """The study's speed; None for what its journal is too short to tell."""
    epochs = spans(record)
    cut = pieces(epochs)
    most_at_once = max((count for *_, count in cut), default=0)
    full, full_seconds = _speed(epochs, [(begin, end) for begin, end, count in cut if count == most_at_once])
    overall, _ = _speed(epochs, [(epochs[0].end, epochs[-1].end)] if epochs else [])
    reported = [metrics for trial in record.trials.values() for metrics in trial.epochs.values()]
    lengths = [metrics["epoch_seconds"] for metrics in reported]
    firsts = [trial.epochs[1]["epoch_seconds"] for trial in record.trials.values() if 1 in trial.epochs]
    return Throughput(
        overall=overall, full=full, full_seconds=full_seconds, most_at_once=most_at_once,
        own_speed_mean=fmean(metrics["images_per_second"] for metrics in reported) if reported else None,
        epoch_seconds_mean=fmean(lengths) if lengths else None,
        epoch_seconds_median=median(lengths) if lengths else None,
        first_epoch_seconds=fmean(firsts) if firsts else None, epochs=len(epochs),
    )  # fmt: skip
