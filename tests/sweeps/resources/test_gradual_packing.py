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
        self,
        growth: Mapping[int, float],
        limit: Limit = FREE,
        speeds: Callable[[int], float] = lambda _: 500.0,
        epochs: int = 1000,
    ):
        self.now, self.growth, self.speeds = 0.0, growth, speeds
        self.decided: list[tuple[Packing, dict[str, Any]]] = []
        self.growing = GradualPacking(
            limit,
            IMAGES,
            PROCESSES,
            lambda *decision: self.decided.append(decision),
            epochs=epochs,
            clock=self.time,
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
    card = Card({1: 1, 2: 0.98}, speeds=lambda index: 50.0 if index == 0 else 500.0)
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
        card.now += 4.1
        growing.add_epoch("t0", {"epoch_seconds": 4.1})
        growing.add_epoch("t1", {"epoch_seconds": 4.1})
    assert growing.slots == 1  # together slower than one of them alone was, which half the total says
    assert growing.decided


@pytest.mark.parametrize(("epochs", "slots"), [(5, 2), (100, 1)])
def test_two_short_trials_share_a_card_since_one_alone_leaves_it_idle_while_the_next_one_starts(epochs, slots):
    """Two train 3 % less together. Alone, 5 epochs of 2 s each are followed by 0.6 s, 6 % of them."""
    assert Card({1: 1, 2: 0.97}, epochs=epochs).train().slots == slots


class Cluster:
    """Cards on which a study trains: as many trials at once as `GradualPacking` allows, each in a worker of a card.

    A worker is started on the card with the fewest, as `CardPlaces` has it, and takes one trial after the other.
    """

    START = 20.0  # seconds of a new worker
    TURN = 0.5  # between two trials of a worker

    def __init__(self, cards: int, growth: Mapping[int, float], limit: int, trials: int, epochs: int = 20):
        self.now, self.growth, self.epochs, self.waiting = 0.0, growth, epochs, [f"t{i}" for i in range(trials)]
        self.growing = GradualPacking(
            Limit(limit, "made"), IMAGES, PROCESSES, lambda *_: None, cards=cards, epochs=epochs, clock=lambda: self.now
        )
        self.workers: list[list[str]] = [[] for _ in range(cards)]  # trials of the workers of each card; "" waits
        self.begins: dict[str, float] = {}
        self.left: dict[str, float] = {}
        self.epoch_began: dict[str, float] = {}
        self.busy = [0.0] * cards

    def running(self) -> list[str]:
        return [trial for workers in self.workers for trial in workers if trial]

    def launch(self) -> None:
        while self.waiting and self.growing.may_launch(len(self.running())):
            free = next((workers for workers in self.workers if "" in workers), None)
            delay = self.TURN
            if free is None:
                free, delay = min(self.workers, key=len), self.START
                assert len(free) < self.growing.slots
                free.append("")
            trial = self.waiting.pop(0)
            free[free.index("")] = trial
            self.begins[trial], self.left[trial] = self.now + delay, float(self.epochs)

    def run(self, step: float = 0.1) -> None:
        while self.waiting or self.running():
            self.launch()
            self.now += step
            for card, workers in enumerate(self.workers):
                training = [trial for trial in workers if trial and self.begins[trial] <= self.now]
                self.busy[card] += step * bool(training)
                for trial in training:
                    self.train(card, workers, trial, len(training), step)
            if not self.waiting and len(self.running()) < self.growing.slots * len(self.workers):
                return  # the tail

    def train(self, card: int, workers: list[str], trial: str, together: int, step: float) -> None:
        known = max(count for count in self.growth if count <= together)
        self.left[trial] -= step * 0.5 * self.growth[known] / together  # epochs: alone one takes 2 s
        began = self.epoch_began.setdefault(trial, self.now)
        done = self.epochs - self.left[trial]
        if int(done) > int(done - step * 0.5 * self.growth[known] / together):
            if done < 2:
                self.growing.begin(trial, {"host": "h", "cards": [str(card)]})
            self.growing.add_epoch(trial, {"epoch_seconds": self.now - began})
            self.epoch_began[trial] = self.now
        if self.left[trial] <= 0:
            self.growing.remove(trial)
            workers[workers.index(trial)] = ""
            if self.growing.is_surplus(trial):
                workers.remove("")


@pytest.mark.parametrize("cards", [1, 2, 8])
def test_all_cards_are_filled_alike_and_none_is_idle_while_trials_start(cards):
    cluster = Cluster(cards, {1: 1, 2: 1.3, 4: 1.4}, 4, 20 * cards)
    cluster.run()
    assert (cluster.growing.slots, cluster.growing.decided) == (4, True)
    assert [len(workers) for workers in cluster.workers] == [4] * cards
    assert min(seconds / (cluster.now - Cluster.START) for seconds in cluster.busy) > 0.97


def test_workers_of_a_card_that_has_too_many_end_and_its_neighbour_keeps_its_own():
    """With 4 a card they train less than with 2."""
    cluster = Cluster(2, {1: 1, 2: 1.5, 4: 1.0}, 4, 60)
    cluster.run()
    assert (cluster.growing.slots, cluster.growing.decided) == (2, True)
    assert [len(workers) for workers in cluster.workers] == [2, 2]
    assert min(seconds / (cluster.now - Cluster.START) for seconds in cluster.busy) > 0.97


def test_a_trial_is_launched_where_a_card_has_a_place_though_another_one_has_too_many():
    growing = GradualPacking(FREE, IMAGES, PROCESSES, lambda *_: None, cards=2)
    growing.slots = 2
    for number in range(6):
        growing.begin(f"t{number}", {"host": "h", "cards": ["0" if number < 4 else "1"]})
    assert not growing.may_launch(6)
    growing.remove("t0")
    assert growing.is_surplus("t0")
    growing.remove("t4")
    assert not growing.is_surplus("t4")
    assert growing.may_launch(4)  # three on the first card, one on the second
    growing.begin("t0", {"host": "h", "cards": ["1"]})  # tried again
    assert not growing.is_surplus("t0")
    assert not growing.may_launch(5)


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
    card.growing.begin("t0", {"card_mb": 16_000.0})
    growing = card.train(peak_device_mb=4_000.0)
    assert (growing.slots, card.most) == (2, 2)
    ((packing, details),) = card.decided
    assert packing.reason == "4 would need 22,400 MB of the card's 16,000"
    assert (details["card_mb"], details["peak_mb"]) == (16_000.0, 4_000.0)
