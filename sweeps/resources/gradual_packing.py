"""Finds how many trials share a card by the study's own trials: 1, 2, 4, 8 at once, as long as all train more together.

So nothing waits while the number is undecided. It is the same on each of several cards. Each number of trials is kept
until some epochs were trained by so many. How much faster twice as many are, is read off the trials that trained before
and after: others may be larger or smaller. An epoch counts with its validation, without the time that compiling took.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
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
# For which a card with one trial at a time stands idle until the next one trains, an assumption: in a worker that has
# trained before, compilation and recording took 0.3 to 0.8 s on an H200 (docs/results/h200_tt_schedule_cifar10.md)
START_SECONDS = 0.6

OnDecision = Callable[[Packing, EventFields], None]  # the packing, and the other fields of its event


class GradualPacking:
    """Says how many trials may share a card now.

    Attributes:
        slots: so many.
        decided: whether that is how many will share it to the end.
        cards: how many there are, of one type.
        sharing: the mode of sharing a card.
        on_growth: is called with `slots` when they have grown.
        on_surplus: is called when a trial leaves a card that has enough without it, and its worker will end.
    """

    def __init__(
        self, limit: Limit, images: int, sharing: str, on_decision: OnDecision, *, cards: int = 1, epochs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        """Begin with one trial on each card.

        Args:
            limit: of trials on a card.
            images: of an epoch.
            sharing: the mode of sharing a card.
            on_decision: is called once.
            cards: how many there are, of one type.
            epochs: of a trial.
            clock: seconds; monotonic.
        """
        self.slots, self.decided, self.cards = 1, False, cards
        self.sharing = sharing
        self.on_growth: Callable[[int], None] = lambda slots: None
        self.on_surplus: Callable[[], None] = lambda: None
        self._limit, self._images, self._on_decision, self._clock = limit, images, on_decision, clock
        self._epochs = epochs
        self._card: dict[str, str] = {}  # of each running trial that has reported it
        self._surplus: set[str] = set()  # trials that have ended on a card with more than may share it
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
        """The most trials that may share a card."""
        return max(count for count in COUNTS if count <= self._limit.trials)

    @property
    def share(self) -> float:
        """The share of a card's memory that a trial may take that starts now."""
        return 1 / self.slots

    def may_launch(self, running: int) -> bool:
        """Tell whether another trial may start.

        Those of a card that has more than may share it, because they had started before that was known, take no place
        from the other cards.

        Args:
            running: trials that have started, or are starting.

        Returns:
            True if a card has a free place.
        """
        surplus = sum(max(0, count - self.slots) for count in Counter(self._card.values()).values())
        return running - surplus < self.slots * self.cards

    def is_surplus(self, trial_id: str) -> bool:
        """Tell whether the worker of a trial that has ended must end too: its card has enough without it.

        Args:
            trial_id: the trial.

        Returns:
            True if no other trial may take the worker.
        """
        return trial_id in self._surplus

    def begin(self, trial_id: str, attempt: EventFields) -> None:
        """Note the card of a trial and its memory, as the trial has reported them.

        Args:
            trial_id: the trial.
            attempt: the fields of its attempt.
        """
        self._card[trial_id] = f"{attempt.get('host')} {attempt.get('cards')}"
        self._surplus.discard(trial_id)
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
            self._began = now if len(self._running) >= self.slots * self.cards else None
            return
        seconds = whole - metrics.get("compile_seconds", 0.0) - metrics.get("eval_compile_seconds", 0.0)
        if now - whole >= self._began and seconds > 0:
            self._speeds[trial_id].append(self._images / seconds)
        epochs = sum(map(len, self._speeds.values()))
        if epochs >= EPOCHS_PER_TRIAL * self.slots * self.cards and now - self._began >= WINDOW_SECONDS:
            self._end_count()

    def remove(self, trial_id: str) -> None:
        """Note that a trial has ended.

        Args:
            trial_id: the trial.
        """
        self._running.discard(trial_id)
        card = self._card.pop(trial_id, None)
        if card is not None and Counter(self._card.values())[card] >= self.slots:
            self._surplus.add(trial_id)
            self.on_surplus()

    def out_of_memory(self, reason: str) -> None:
        """Note that a trial did not fit beside the others; no more than before will share a card.

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
            self.on_growth(self.slots)

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
        best = max(self._measurements, key=self._with_starts)
        self.slots, self.decided = best.trials, True
        packing = Packing(best.trials, tuple(self._measurements), reason, self.sharing)
        self._lines += packing_lines(packing, "as its trials trained")
        self._on_decision(packing, {
            "measured": self._trial, "card_mb": self._card_mb, "peak_from": "trials", "peak_mb": self._peak_mb,
        })  # fmt: skip

    def _with_starts(self, measurement: Throughput) -> float:
        """Images per second over whole trials: one trial alone trains nothing while the next one starts."""
        speed = measurement.images_per_second
        seconds = self._epochs * self._images / max(speed, 1e-9)
        return speed * seconds / (seconds + START_SECONDS) if measurement.trials == 1 else speed

    def take_lines(self) -> list[str]:
        """Return what the user has not been told yet."""
        lines = list(self._lines)
        self._lines.clear()
        return lines
