"""How many trials share a card, found by a study's own trials: what a made card trains decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sweeps.resources.gpu_packing import Limit, Packing
from sweeps.resources.gradual_packing import GradualPacking
from sweeps.resources.mps import PROCESSES

IMAGES = 1000
FREE = Limit(8, "8 trials")


class Card:
    """A card that trains trials of several speeds, as fast together as `growth` times one alone."""

    def __init__(
        self, growth: Mapping[int, float], limit: Limit = FREE, speeds: Callable[[int], float] = lambda _: 500.0
    ):
        self.now, self.growth, self.speeds = 0.0, growth, speeds
        self.decided: list[tuple[Packing, dict[str, Any]]] = []
        self.growing = GradualPacking(
            limit, IMAGES, PROCESSES, lambda *decision: self.decided.append(decision), self.time
        )
        self.most = 1

    def time(self) -> float:
        return self.now

    def train(self, rounds: int = 20, **metrics: float) -> GradualPacking:
        """Train as many trials as are allowed, for some epochs; all of a round end at once."""
        for _ in range(rounds):
            count = self.growing.slots
            self.most = max(self.most, count)
            factor = self.growth[count] / count
            began = self.now
            for index in range(count):
                seconds = IMAGES / (self.speeds(index) * factor)
                self.now = began + seconds
                self.growing.add_epoch(f"t{index}", {"epoch_seconds": seconds, **metrics})
            self.now = began + max(IMAGES / (self.speeds(index) * factor) for index in range(count))
        return self.growing


@pytest.mark.parametrize(
    ("growth", "limit", "slots", "most", "reason"),
    [
        ({1: 1, 2: 1.9, 4: 3, 8: 4}, FREE, 8, 8, "more than 8 are not tried"),
        ({1: 1, 2: 1.9, 4: 3, 8: 3.1}, FREE, 8, 8, "with 8 the total no longer grows"),
        ({1: 1, 2: 1.9, 4: 3, 8: 2.5}, FREE, 4, 8, "with 8 the total no longer grows"),
        ({1: 1, 2: 0.9}, FREE, 1, 2, "with 2 the total no longer grows"),
        ({1: 1, 2: 1.9}, Limit(3, "3 CPUs"), 2, 2, "4 are too many: 3 CPUs"),
    ],
)
def test_trials_are_added_as_long_as_all_train_more_together(growth, limit, slots, most, reason):
    card = Card(growth, limit)
    growing = card.train()
    assert (growing.slots, growing.decided, card.most) == (slots, True, most)
    ((packing, details),) = card.decided
    assert (packing.per_card, packing.reason) == (slots, reason)
    assert [row.images_per_second for row in packing.measurements] == pytest.approx(
        [500 * growth[row.trials] for row in packing.measurements]
    )
    assert details["measured"] == "t0"
    assert growing.share == 1 / slots
    assert growing.take_lines()[-1].endswith(reason)
    assert growing.take_lines() == []


def test_trials_of_other_sizes_do_not_look_like_a_faster_or_slower_card():
    """The first trains at a tenth of the speed of the others: their speeds alone would say that the total grows."""
    card = Card({1: 1, 2: 1.0}, speeds=lambda index: 50.0 if index == 0 else 500.0)
    assert card.train().slots == 1
    card = Card({1: 1, 2: 2.0, 4: 4.0, 8: 8.0}, speeds=lambda index: 500.0 if index == 0 else 50.0)
    assert card.train(60).slots == 8


def test_the_time_of_compiling_does_not_count():
    card = Card({1: 1, 2: 2, 4: 4, 8: 8})
    growing = card.growing
    card.now = 100.0
    growing.add_epoch("a", {"epoch_seconds": 100.0, "compile_seconds": 90.0, "eval_compile_seconds": 8.0})
    for _ in range(2):
        card.now += 4.0
        growing.add_epoch("a", {"epoch_seconds": 4.0, "compile_seconds": 1.5, "eval_compile_seconds": 0.5})
    assert growing.slots == 2
    assert [row.images_per_second for row in growing._measurements] == [500.0]


def test_a_number_is_measured_once_all_of_its_trials_train():
    card = Card({1: 1, 2: 2, 4: 4, 8: 8})
    growing = card.train(3)
    assert growing.slots == 2
    for _ in range(10):  # the second trial is still being set up
        card.now += 4.0
        growing.add_epoch("t0", {"epoch_seconds": 4.0})
    assert growing.slots == 2
    growing.add_epoch("t1", {"epoch_seconds": 4.0})
    for _ in range(2):
        card.now += 4.0
        growing.add_epoch("t0", {"epoch_seconds": 4.0})
        growing.add_epoch("t1", {"epoch_seconds": 4.0})
    assert growing.slots == 1  # together as fast as one of them alone was, which half the total says
    assert growing.decided


def test_a_trial_that_does_not_fit_beside_others_ends_the_growth():
    card = Card({1: 1, 2: 1.9, 4: 3, 8: 4})
    growing = card.train(6)
    assert (growing.slots, growing.decided) == (4, False)
    growing.out_of_memory("Tried to allocate 2 GiB")
    assert (growing.slots, growing.decided) == (2, True)
    growing.out_of_memory("once more")
    ((packing, _),) = card.decided
    assert packing.reason == "4 do not fit on a card: Tried to allocate 2 GiB"


def test_one_trial_that_does_not_fit_alone_says_nothing_of_the_others():
    card = Card({1: 1, 2: 1.9, 4: 3, 8: 4})
    card.growing.out_of_memory("Tried to allocate 2 GiB")
    assert not card.growing.decided


def test_no_more_trials_are_tried_than_the_cards_memory_can_hold():
    card = Card({1: 1, 2: 1.9, 4: 3, 8: 4})
    card.growing.set_card({"card_mb": 16_000.0})
    growing = card.train(peak_device_mb=4_000.0)
    assert (growing.slots, card.most) == (2, 2)
    ((packing, details),) = card.decided
    assert packing.reason == "4 would need 22,400 MB of the card's 16,000"
    assert (details["card_mb"], details["peak_mb"]) == (16_000.0, 4_000.0)
