"""How many trials each card of a cluster takes at present, where all of them ask for the same small share of one.

Ray fills one card after the other with small shares, so the second of two trials would share the first card while the
second one stands idle. Here the shares of each card that no trial may have yet are held by placement groups, which run
nothing: what is free is then the same on all cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from lowrank.errors import HungError

FREE_SECONDS = 60.0  # for a card to be free, after which the study is given up
GPU = "GPU"


def cards_are_free(cards: float) -> bool:
    """Tell whether so many cards are there now, and none of them is used through Ray.

    Args:
        cards: how many.

    Returns:
        False also where some of them are machines that have yet to start.
    """
    return bool(ray.available_resources().get(GPU, 0.0) >= cards)


def reserve(share: float) -> Any:
    """Reserve a share of a card, without a process.

    Args:
        share: of a card, 1 for all of it.

    Returns:
        The placement group, which may still have to wait for its card.
    """
    return placement_group([{GPU: share}])


class CardPlaces:
    """Gives each of several cards the same number of places for trials.

    A context manager, after which all places are free.
    """

    def __init__(self, cards: int, max_places: int):
        """Prepare; nothing is held before `with`.

        Args:
            cards: how many there are, all of them free.
            max_places: of a card; a trial asks for one of so many shares of it.
        """
        self._cards, self._max_places = cards, max_places
        self._blocks: dict[int, list[Any]] = {}  # of each card one; by the number of places from which they are free

    def __enter__(self) -> Self:
        """Hold all places but one of each card.

        Raises:
            HungError: a card is not free within FREE_SECONDS.
        """
        cards = [reserve(1.0) for _ in range(self._cards)]
        firsts: list[Any] = []
        try:
            _wait(cards)
            while cards:
                remove_placement_group(cards.pop())  # now it is the only one with anything free
                firsts.append(reserve(1 / self._max_places))
                for lower, upper in self._steps():
                    self._blocks.setdefault(upper, []).append(reserve((upper - lower) / self._max_places))
                _wait([firsts[-1], *(blocks[-1] for blocks in self._blocks.values())])
        except BaseException:
            self._release(cards)
            self.__exit__(None, None, None)
            raise
        finally:
            self._release(firsts)
        return self

    def _steps(self) -> list[tuple[int, int]]:
        """Return the steps by which places are freed: 1 to 2, 2 to 4 and so on, to all of them."""
        steps, places = [], 1
        while places < self._max_places:
            steps.append((places, min(self._max_places, 2 * places)))
            places = steps[-1][1]
        return steps

    def open(self, places: int) -> None:
        """Let each card have so many places from now on.

        Args:
            places: of each card; one of 1, 2, 4 ..., no fewer than before.
        """
        for upper in [upper for upper in self._blocks if upper <= places]:
            self._release(self._blocks.pop(upper))

    def close_one(self) -> Any:
        """Hold the place of a trial that is about to leave a card with more trials than it should have.

        All other places are taken or held, so that it can be no other one. A worker that asks for a place before the
        trial has left may still get it.

        Returns:
            The placement group, which waits until the trial has left.
        """
        block = reserve(1 / self._max_places)
        self._blocks.setdefault(self._max_places + 1, []).append(block)
        return block

    @staticmethod
    def _release(blocks: Sequence[Any]) -> None:
        for block in blocks:
            remove_placement_group(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for blocks in self._blocks.values():
            self._release(blocks)
        self._blocks = {}


def _wait(blocks: Sequence[Any]) -> None:
    for block in blocks:
        if not block.wait(FREE_SECONDS):
            raise HungError(
                f"gpus_per_trial auto: the cards were not free within {FREE_SECONDS:.0f} s; give --gpus-per-trial a "
                "number"
            )
