"""Decides whether several cards for one trial are worth it, by what one card and several really train.

Here is the choice alone, which touches no card; sweeps.execution.spread_benchmark measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweeps.records import EventFields

MIN_GAIN = 1.05  # times the speed of one card, under which several are not worth their time

MeasureCards = Callable[[int], float]  # images per second of a trial on so many cards; 0 where it does not fit


@dataclass(frozen=True)
class Spreading:
    """How many cards a trial gets, and the images per second that were measured on one and on `tried` cards."""

    cards: int
    tried: int
    on_one: float
    on_several: float

    def to_event(self) -> EventFields:
        """Return the fields of the journal's event."""
        return {"cards": self.cards, "tried": self.tried, "one": self.on_one, "several": self.on_several}

    def __str__(self) -> str:
        if not self.on_one and not self.on_several:
            return f"a trial fits neither on one card nor on {self.tried}, as far as could be measured"
        speeds = f"{self.tried} cards train {self.on_several:,.0f} images/s, one card trains {self.on_one:,.0f}"
        if self.cards > 1:
            return f"each trial gets {self.cards} cards: {speeds}"
        return f"each trial gets one card, not {self.tried}: {speeds}"


def choose_cards(measure: MeasureCards, cards: int) -> Spreading:
    """Choose between one card and several for each trial.

    Args:
        measure: trains a trial of the study on so many cards.
        cards: how many are asked for.

    Returns:
        The choice: `cards` where they train at least MIN_GAIN times as fast as one, or where nothing fits on one.
    """
    on_one, on_several = measure(1), measure(cards)
    worth = on_several >= MIN_GAIN * on_one
    return Spreading(cards if worth else 1, cards, on_one, on_several)
