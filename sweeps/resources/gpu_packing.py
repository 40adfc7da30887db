"""Chooses how many trials of a study share a card (`gpus_per_trial: auto`) by what several at once really train.

Here is the choice alone, which touches no card; sweeps.resources.packing_benchmark measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from lowrank.utils import format_counted
from sweeps.records import EventFields
from sweeps.resources.mps import PROCESSES
from sweeps.resources.shares import Cluster

COUNTS = (1, 2, 4, 8)  # trials a card that are tried
MIN_GROWTH = 1.05  # a doubling that gives less than this times the best total so far is the last
MEMORY_MARGIN = 1.25  # times the peak of one trial, for what the benchmark does not meet
CONTEXT_MB = 600.0  # MB (1e6 bytes) of a card that a process takes beside its tensors


MAX_SHARE = 0.05  # of the time that the study itself is expected to take, after which no more is measured


class NoMemoryError(Exception):
    """So many trials do not fit on a card together."""


@dataclass(frozen=True)
class Throughput:
    """What so many trials on one card train together.

    `images_per_second` is the sum over all of them, `peak_mb` the most memory that one of them held, in MB.
    """

    trials: int
    images_per_second: float
    peak_mb: float | None = None
    sharing: str = PROCESSES


@dataclass(frozen=True)
class Limit:
    """The most trials a card that are worth a try, and what limits them, in words."""

    trials: int
    reason: str


class MeasuringTime:
    """Says when measuring has taken its share of the study's expected time.

    How long the study takes follows from the best total so far. The next measurement is expected to take as long as the
    last one.

    Args:
        images: that one card trains in the study, all epochs of all of its trials together.
        clock: seconds; monotonic.
    """

    def __init__(self, images: float, clock: Callable[[], float] = time.monotonic):
        self._images, self._clock = images, clock
        self._start = self._last = clock()

    def objection(self, measurements: Sequence[Throughput]) -> str | None:
        """Say why no more is measured.

        Args:
            measurements: those so far, the last one just taken.

        Returns:
            One clause; None where more may be measured.
        """
        now = self._clock()
        spent, step, self._last = now - self._start, now - self._last, now
        best = max((measurement.images_per_second for measurement in measurements), default=0.0)
        if best <= 0:
            return None
        expected = self._images / best
        if spent + step <= MAX_SHARE * expected:
            return None
        return f"the study trains for about {expected:.0f} s, too short to measure more after {spent:.0f} s"


@dataclass(frozen=True)
class Packing:
    """How many trials share a card and by which mode, what was measured, and why no more were tried.

    `cut_short` is whether it was the study's time that ended the measurements: a longer study would have gone on.
    """

    per_card: int
    measurements: tuple[Throughput, ...]
    reason: str
    sharing: str = PROCESSES
    cut_short: bool = False

    @property
    def gpus(self) -> float:
        """The share of a card that a trial gets."""
        return 1 / self.per_card

    def to_event(self) -> EventFields:
        """Return the fields of the journal's event."""
        return {
            "per_card": self.per_card, "tried": [asdict(measurement) for measurement in self.measurements],
            "why": self.reason, "sharing": self.sharing, "gpus": self.gpus,
        }  # fmt: skip

    @staticmethod
    def from_event(event: EventFields) -> Packing:
        """Read what `to_event` made.

        Args:
            event: of the journal; one of an older study may lack `sharing`.

        Returns:
            The packing.
        """
        measurements = tuple(Throughput(**row) for row in event["tried"])
        return Packing(event["per_card"], measurements, event["why"], event.get("sharing", PROCESSES))


def packing_limit(cluster: Cluster, cpus: float, trials: int, max_concurrent: int | None) -> Limit:
    """Find how many trials a card are worth a try, whatever the card's memory and speed.

    Args:
        cluster: CPUs and GPUs there are.
        cpus: CPUs of one trial.
        trials: trials of the study.
        max_concurrent: trials at once where the user limits them.

    Returns:
        At least 1 trial a card, and the tightest limit.
    """
    cards = max(1.0, cluster.gpus)
    limits = [
        Limit(math.floor(cluster.cpus / cpus / cards + 1e-9),
              f"{format_counted(cluster.cpus, 'CPU')} for {format_counted(cards, 'card')}, {cpus:g} a trial"),
        Limit(math.ceil(trials / cards), f"{format_counted(trials, 'trial')} for {format_counted(cards, 'card')}"),
    ]  # fmt: skip
    if max_concurrent is not None:
        limits.append(
            Limit(math.ceil(max_concurrent / cards), f"at most {format_counted(max_concurrent, 'trial')} at once")
        )
    tightest = min(limits, key=lambda limit: limit.trials)
    return Limit(max(1, tightest.trials), tightest.reason)


def choose_count(
    measure: Callable[[int], Throughput], limit: Limit, card_mb: float | None, peak_mb: float | None,
    measuring_time: MeasuringTime | None = None,
) -> Packing:  # fmt: skip
    """Try 1, 2, 4, 8 trials a card until the total no longer grows, and choose the largest total.

    Args:
        measure: trains so many trials on one card; raises NoMemoryError.
        limit: of trials a card.
        card_mb: memory of a card in MB; None if unknown.
        peak_mb: memory of the study's largest trial in MB; None if unknown.
        measuring_time: ends the measurements of a short study; None measures whatever it takes.

    Returns:
        The packing; 1 trial a card where not even that was measured.
    """
    measurements: list[Throughput] = []
    cut_short = False
    reason = f"more than {COUNTS[-1]} are not tried"
    for count in COUNTS:
        objection = _objection(count, limit, card_mb, peak_mb)
        if objection is not None:
            reason = objection
            break
        best = max((earlier.images_per_second for earlier in measurements), default=0.0)
        try:
            measurements.append(measure(count))
        except NoMemoryError as error:
            reason = f"{count} do not fit on a card: {error}"
            break
        if measurements[-1].images_per_second < MIN_GROWTH * best:
            reason = f"with {count} the total no longer grows"
            break
        too_long = measuring_time.objection(measurements) if measuring_time is not None else None
        if too_long is not None and count != COUNTS[-1]:
            reason, cut_short = too_long, True
            break
    chosen = max(measurements, key=lambda measurement: measurement.images_per_second, default=Throughput(1, 0.0))
    return Packing(chosen.trials, tuple(measurements), reason, chosen.sharing, cut_short)


def best_packing(packings: Sequence[Packing]) -> Packing:
    """Choose among packings by several sharing modes the one whose card trains the most.

    Args:
        packings: one of each mode.

    Returns:
        The best, with the measurements of all.
    """

    def best_total(packing: Packing) -> float:
        return max((measurement.images_per_second for measurement in packing.measurements), default=0.0)

    measurements = tuple(measurement for packing in packings for measurement in packing.measurements)
    cut_short = any(packing.cut_short for packing in packings)
    return replace(max(packings, key=best_total), measurements=measurements, cut_short=cut_short)


def _objection(count: int, limit: Limit, card_mb: float | None, peak_mb: float | None) -> str | None:
    """Say why so many trials a card are not tried; None if they are. One always is."""
    if count == 1:
        return None
    if count > limit.trials:
        return f"{count} are too many: {limit.reason}"
    if card_mb is None or peak_mb is None:
        return None
    needed = count * (MEMORY_MARGIN * peak_mb + CONTEXT_MB)
    if needed <= card_mb:
        return None
    return f"{count} would need {needed:,.0f} MB of the card's {card_mb:,.0f}, {peak_mb:,.0f} MB the largest trial"


def packing_lines(packing: Packing, card: str, *, measured_by: str | None = None) -> Sequence[str]:
    """Describe a packing for the user.

    Args:
        packing: what was chosen.
        card: the card's name.
        measured_by: what took the measurements earlier, which are then left out; None if they were taken now.

    Returns:
        A line for each measurement, and one for the choice.
    """
    rows = [
        f"  {format_counted(measurement.trials, 'trial')} a card{_mode(measurement.sharing)}: "
        f"{measurement.images_per_second:,.0f} images/s{_memory(measurement)}"
        for measurement in packing.measurements
    ]
    reason = packing.reason if measured_by is None else f"as measured {measured_by}"
    choice = f"{format_counted(packing.per_card, 'trial')} a card{_mode(packing.sharing)} ({card}): {reason}"
    return [*(rows if measured_by is None else []), choice]


def _mode(sharing: str) -> str:
    return "" if sharing == PROCESSES else f" by {sharing}"


def _memory(measurement: Throughput) -> str:
    return "" if measurement.peak_mb is None else f", {measurement.peak_mb:,.0f} MB each"
