"""`gpus_per_trial: auto`: how many trials of a study share a card, from what several at once really train.

Here is the choice, which knows nothing of cards: sweeps.resources.packing_benchmark measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sweeps.resources.mps import PROCESSES
from sweeps.resources.shares import Cluster

COUNTS = (1, 2, 4, 8)  # trials a card that are tried
GROWTH = 1.05  # a doubling that gives less than this times the best total so far is the last
MARGIN = 1.25  # times the peak of one trial, for what a dry run does not meet
CONTEXT_MB = 600.0  # MB (1e6 bytes) of a card that a process takes beside its tensors


class NoMemoryError(Exception):
    """So many trials do not fit on a card together."""


@dataclass(frozen=True)
class Tried:
    """So many trials on one card: images per second of all together; the most memory that one of them held, in MB."""

    trials: int
    images_per_second: float
    peak_mb: float | None = None
    sharing: str = PROCESSES


@dataclass(frozen=True)
class Limit:
    """The most trials a card that are worth a try, and in words what limits them."""

    trials: int
    why: str


@dataclass(frozen=True)
class Placement:
    """How many trials share a card and how, what was tried, and why no more was."""

    per_card: int
    tried: tuple[Tried, ...]
    why: str
    sharing: str = PROCESSES

    @property
    def gpus(self) -> float:
        """The share of a card that a trial gets."""
        return 1 / self.per_card

    def to_event(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return {**asdict(self), "gpus": self.gpus}

    @staticmethod
    def of_event(event: dict[str, Any]) -> Placement:
        """What `to_event` made."""
        tried = tuple(Tried(**row) for row in event["tried"])
        return Placement(event["per_card"], tried, event["why"], event.get("sharing", PROCESSES))


def limit_of(cluster: Cluster, cpus: float, trials: int, most: int | None) -> Limit:
    """What CPUs, the number of trials and the user's own limit leave of trials a card; at least 1."""
    cards = max(1.0, cluster.gpus)
    limits = [
        Limit(math.floor(cluster.cpus / cpus / cards + 1e-9),
              f"{cluster.cpus:g} CPUs for {cards:g} cards, {cpus:g} a trial"),
        Limit(math.ceil(trials / cards), f"{trials} trials for {cards:g} cards"),
    ]  # fmt: skip
    if most is not None:
        limits.append(Limit(math.ceil(most / cards), f"at most {most} trials at once"))
    least = min(limits, key=lambda limit: limit.trials)
    return Limit(max(1, least.trials), least.why)


def choose(
    measure: Callable[[int], Tried], limit: Limit, card_mb: float | None, peak_mb: float | None
) -> Placement:  # fmt: skip
    """Try 1, 2, 4, 8 trials a card until the total no longer grows; the number with the largest total is taken.

    Args:
        measure: of so many trials on one card; raises NoMemoryError.
        limit: of trials a card.
        card_mb: memory of a card in MB; None where it is not known.
        peak_mb: memory of the study's largest trial in MB; None where it is not known.
    """
    tried: list[Tried] = []
    why = f"more than {COUNTS[-1]} are not tried"
    for count in COUNTS:
        reason = _against(count, limit, card_mb, peak_mb)
        if reason is not None:
            why = reason
            break
        best = max((each.images_per_second for each in tried), default=0.0)
        try:
            tried.append(measure(count))
        except NoMemoryError as error:
            why = f"{count} do not fit on a card: {error}"
            break
        if tried[-1].images_per_second < GROWTH * best:
            why = f"with {count} the total no longer grows"
            break
    chosen = max(tried, key=lambda each: each.images_per_second, default=Tried(1, 0.0))
    return Placement(chosen.trials, tuple(tried), why, chosen.sharing)


def better(placements: Sequence[Placement]) -> Placement:
    """Of placements by several ways of sharing, the one whose card trains the most; what all tried is kept."""

    def most(placement: Placement) -> float:
        return max((each.images_per_second for each in placement.tried), default=0.0)

    return replace(max(placements, key=most), tried=tuple(each for one in placements for each in one.tried))


def _against(count: int, limit: Limit, card_mb: float | None, peak_mb: float | None) -> str | None:
    """Why so many trials a card are not tried; None where they are. One is always."""
    if count == 1:
        return None
    if count > limit.trials:
        return f"{count} are too many: {limit.why}"
    if card_mb is None or peak_mb is None:
        return None
    needed = count * (MARGIN * peak_mb + CONTEXT_MB)
    if needed <= card_mb:
        return None
    return f"{count} would need {needed:,.0f} MB of the card's {card_mb:,.0f}, {peak_mb:,.0f} MB the largest trial"


def words(placement: Placement, card: str, again: bool = False) -> Sequence[str]:
    """The placement for the user, a line each; `again`: as an earlier sitting measured it."""
    rows = [
        f"  {_trials(each.trials)} a card{_by(each.sharing)}: {each.images_per_second:,.0f} images/s{_held(each)}"
        for each in placement.tried
    ]
    when = "as measured when the study began" if again else placement.why
    chosen = f"{_trials(placement.per_card)} a card{_by(placement.sharing)} ({card}): {when}"
    return [*([] if again else rows), chosen]


def _by(sharing: str) -> str:
    return "" if sharing == PROCESSES else f" by {sharing}"


def _held(tried: Tried) -> str:
    return "" if tried.peak_mb is None else f", {tried.peak_mb:,.0f} MB each"


def _trials(count: int) -> str:
    return f"{count} trial{'s' if count > 1 else ''}"
