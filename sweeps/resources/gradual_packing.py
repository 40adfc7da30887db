"""Finds how many trials share a card by the study's own trials: 1, 2, 4, 8 at once, as long as all train more together.

So nothing waits while the number is undecided. Each number of trials is kept until some epochs were trained by so many.
How much faster twice as many are, is read off the trials that trained before and after: others may be larger or
smaller. An epoch counts with its validation, without the time that compiling took.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

from sweeps.records import EventFields
from sweeps.resources.gpu_packing import (
    CONTEXT_MB,
    COUNTS,
    MEMORY_MARGIN,
    MIN_GROWTH,
    Limit,
    Packing,
    Throughput,
    packing_lines,
)

WINDOW_SECONDS = 3.0  # for which so many trials train at once, at least
EPOCHS_PER_TRIAL = 2  # that are counted of each of them, on average

OnDecision = Callable[[Packing, EventFields], None]  # the packing, and the other fields of its event


class GradualPacking:
    """Says how many trials may share the card now.

    Attributes:
        slots: so many.
        decided: whether that is how many will share it to the end.
        sharing: the mode of sharing the card.
    """

    def __init__(
        self, limit: Limit, images: int, sharing: str, on_decision: OnDecision,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        """Begin with one trial on the card.

        Args:
            limit: of trials on the card.
            images: of an epoch.
            sharing: the mode of sharing the card.
            on_decision: is called once.
            clock: seconds; monotonic.
        """
        self.slots, self.decided = 1, False
        self.sharing = sharing
        self._limit, self._images, self._on_decision, self._clock = limit, images, on_decision, clock
        self._lines: list[str] = []
        self._measurements: list[Throughput] = []
        self._earlier: dict[str, float] = {}  # images per second of each trial with the last number of trials
        self._card_mb: float | None = None
        self._peak_mb: float | None = None
        self._trial = ""  # the first that was measured
        self._begin_count()

    def _begin_count(self) -> None:
        self._running: set[str] = set()  # trials with an epoch since so many may run
        self._began: float | None = None  # when all of them trained
        self._speeds: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def max_slots(self) -> int:
        """The most trials that may share the card."""
        return max(count for count in COUNTS if count <= self._limit.trials)

    @property
    def share(self) -> float:
        """The share of the card's memory that a trial may take that starts now."""
        return 1 / self.slots

    def set_card(self, attempt: Mapping[str, object]) -> None:
        """Note the memory of the card, as a trial has reported it.

        Args:
            attempt: the fields of the trial's attempt.
        """
        card_mb = attempt.get("card_mb")
        self._card_mb = float(card_mb) if isinstance(card_mb, int | float) else self._card_mb

    def add_epoch(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Count an epoch that a trial has just trained; after it, more trials may be allowed.

        Args:
            trial_id: the trial.
            metrics: of the epoch.
        """
        if self.decided:
            return
        now, whole = self._clock(), metrics["epoch_seconds"]
        self._trial = self._trial or trial_id
        if "peak_device_mb" in metrics:
            self._peak_mb = max(self._peak_mb or 0.0, metrics["peak_device_mb"])
        self._running.add(trial_id)
        if self._began is None:
            self._began = now if len(self._running) >= self.slots else None
            return
        seconds = whole - metrics.get("compile_seconds", 0.0) - metrics.get("eval_compile_seconds", 0.0)
        if now - whole >= self._began and seconds > 0:
            self._speeds[trial_id].append(self._images / seconds)
        epochs = sum(map(len, self._speeds.values()))
        if epochs >= EPOCHS_PER_TRIAL * self.slots and now - self._began >= WINDOW_SECONDS:
            self._end_count()

    def remove(self, trial_id: str) -> None:
        """Note that a trial has ended.

        Args:
            trial_id: the trial.
        """
        self._running.discard(trial_id)

    def out_of_memory(self, reason: str) -> None:
        """Note that a trial did not fit beside the others; no more than before will share the card.

        Args:
            reason: what the trial reported.
        """
        if not self.decided and self.slots > 1:
            self._decide(f"{self.slots} do not fit on a card: {reason}")

    def _end_count(self) -> None:
        speeds = {trial_id: fmean(values) for trial_id, values in self._speeds.items()}
        total = self._total(speeds)
        best = max((earlier.images_per_second for earlier in self._measurements), default=0.0)
        self._measurements.append(Throughput(self.slots, total, self._peak_mb, self.sharing))
        self._earlier = speeds
        if total < MIN_GROWTH * best:
            self._decide(f"with {self.slots} the total no longer grows")
        elif objection := self._objection(2 * self.slots):
            self._decide(objection)
        else:
            self.slots *= 2
            self._begin_count()

    def _total(self, speeds: Mapping[str, float]) -> float:
        """Images per second of so many trials like those that were measured first."""
        if not self._measurements:
            return self.slots * fmean(speeds.values())
        before = self._measurements[-1]
        both = self._earlier.keys() & speeds.keys()
        earlier, now = ([table[name] for name in both or table] for table in (self._earlier, speeds))
        return before.images_per_second * (self.slots / before.trials) * fmean(now) / fmean(earlier)

    def _objection(self, count: int) -> str | None:
        """Say why so many trials are not tried; None if they are."""
        if count > COUNTS[-1]:
            return f"more than {COUNTS[-1]} are not tried"
        if count > self._limit.trials:
            return f"{count} are too many: {self._limit.reason}"
        if self._card_mb is None or self._peak_mb is None:
            return None
        needed = count * (MEMORY_MARGIN * self._peak_mb + CONTEXT_MB)
        if needed <= self._card_mb:
            return None
        return f"{count} would need {needed:,.0f} MB of the card's {self._card_mb:,.0f}"

    def _decide(self, reason: str) -> None:
        best = max(self._measurements, key=lambda measurement: measurement.images_per_second)
        self.slots, self.decided = best.trials, True
        packing = Packing(best.trials, tuple(self._measurements), reason, self.sharing)
        self._lines += packing_lines(packing, "as its trials trained")
        self._on_decision(packing, {
            "measured": self._trial, "card_mb": self._card_mb, "peak_from": "trials", "peak_mb": self._peak_mb,
        })  # fmt: skip

    def take_lines(self) -> list[str]:
        """Return what the user has not been told yet."""
        lines = list(self._lines)
        self._lines.clear()
        return lines
