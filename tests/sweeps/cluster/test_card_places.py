"""Shares of cards are held so that trials spread over the cards before they share one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lowrank.errors import HungError
from sweeps.cluster import card_places
from sweeps.cluster.card_places import CardPlaces


@dataclass(eq=False)
class Block:
    """A placement group of `Scheduler`."""

    share: float
    card: int | None = None
    waits: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return self.card is not None


class Scheduler:
    """Places shares as Ray does: on the card with the least free that is enough. What fits nowhere waits."""

    def __init__(self, cards: int):
        self.free, self.waiting = [1.0] * cards, list[Block]()

    def reserve(self, share: float) -> Block:
        block = Block(share)
        self.waiting.append(block)
        self.place()
        return block

    def remove(self, block: Block) -> None:
        if block.card is None:
            self.waiting.remove(block)
        else:
            self.free[block.card] += block.share
        self.place()

    def place(self) -> None:
        for block in list(self.waiting):
            fitting = [card for card, free in enumerate(self.free) if free >= block.share - 1e-9]
            if fitting:
                block.card = min(fitting, key=lambda card: self.free[card])
                self.free[block.card] -= block.share
                self.waiting.remove(block)

    def places(self, share: float) -> list[int]:
        return [round(free / share) for free in self.free]


@pytest.fixture
def scheduler(monkeypatch) -> Scheduler:
    instance = Scheduler(3)
    monkeypatch.setattr(card_places, "reserve", instance.reserve)
    monkeypatch.setattr(card_places, "remove_placement_group", instance.remove)
    return instance


@pytest.mark.parametrize("max_places", [2, 4, 8])
def test_each_card_has_one_place_and_then_twice_as_many(scheduler, max_places):
    with CardPlaces(3, max_places) as places:
        count = 1
        while count <= max_places:
            places.open(count)
            assert scheduler.places(1 / max_places) == [count] * 3
            count *= 2
    assert scheduler.free == pytest.approx([1.0] * 3)
    assert scheduler.waiting == []


def test_trials_spread_over_the_cards_and_a_place_that_is_left_is_held_again(scheduler):
    with CardPlaces(3, 4) as places:
        trials = [scheduler.reserve(0.25) for _ in range(3)]
        assert [trial.card for trial in trials] != [0, 0, 0]
        assert {trial.card for trial in trials} == {0, 1, 2}
        assert scheduler.reserve(0.25).card is None
        scheduler.waiting.clear()
        places.open(2)
        places.open(4)
        trials += [scheduler.reserve(0.25) for _ in range(9)]
        assert scheduler.places(0.25) == [0, 0, 0]
        for card in (0, 2, 1, 0, 1, 2):  # two a card are enough
            leaving = next(trial for trial in trials if trial.card == card)
            trials.remove(leaving)
            places.close_one()
            scheduler.remove(leaving)
            assert scheduler.places(0.25) == [0, 0, 0]
        for trial in trials:
            scheduler.remove(trial)
        assert scheduler.places(0.25) == [2, 2, 2]
    assert scheduler.free == pytest.approx([1.0] * 3)
    assert scheduler.waiting == []


def test_a_card_that_does_not_come_free_ends_the_study_and_holds_nothing(scheduler):
    used = scheduler.reserve(0.5)
    with pytest.raises(HungError, match="the cards were not free within 60 s; give --gpus-per-trial a number"):
        CardPlaces(3, 4).__enter__()
    scheduler.remove(used)
    assert scheduler.free == pytest.approx([1.0] * 3)
    assert scheduler.waiting == []
