"""Small and large trials on many cards, simulated from measured speeds: how long, and how many cards stand idle.

    python -m benchmarks.studies.spread_simulation [--several FILE | --on-two NETWORK=SPEED ...] [--trials 200]

A study has ResNet-9 and WRN-28-10 trials, of which successive halving stops most. Ways to give them cards:

* one: a card for each trial.
* packed: as many a card as train the most together, as `--gpus-per-trial auto` measures.
* longest first: packed, with the trials of the slowest network first, as a grid with `search.order: longest_first`.
* spread: packed; once cards would stand idle, trials go on from their checkpoints: those that share a card on cards of
  their own, then each on two. A study does not do this; it spreads trials from its start alone, where it has no more
  of them than half the cards.
* sorted: as spread, with the trials of the slowest network first.

The speeds of trials that share a card are those of docs/results/h200_engine.txt. That of one trial on two cards is read
from a record of benchmarks.gpu.several_cards, or given; a network without one is only moved. This says what a rule
would give, not what a study on so many cards was seen to do.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measurement import Goal, Measurement, Table, environment, header, load, show
from lowrank.utils import OneLineParser

CARDS = (2, 4, 8, 64)
MAX_IDLE = 5.0  # percent: the goal
EPOCHS, IMAGES = 128, 40_000  # of a trial that is not stopped
STOPPED_AT = (1 / 16, 1 / 16, 1 / 4, 1.0)  # shares of the epochs that trials train, equally often
START_SECONDS = 4.0  # of a trial whose code is compiled already (h200_tt_schedule_cifar10.md)
RESTART_SECONDS = 15.0  # to end a trial's process, start two and read the checkpoint
WAYS = ("one", "packed", "longest first", "spread", "sorted")


@dataclass(frozen=True)
class Network:
    """Images a second of all trials on a card, by their number; of one trial on two cards, None if not known."""

    name: str
    together: dict[int, float]
    on_two: float | None = None

    @property
    def per_card(self) -> int:
        """The number of trials a card that train the most."""
        return max(self.together, key=lambda count: self.together[count])

    def speed(self, count: int) -> float:
        """Images a second of one of so many trials on a card."""
        known = max(number for number in self.together if number <= count)
        return self.together[known] / count


NETWORKS = {  # one H200, compiled steps under the multi-process service, 2026-11-27
    "resnet9": Network("resnet9", {1: 262_352, 2: 324_553, 4: 349_839, 8: 351_525}),
    "wrn_28_10": Network("wrn_28_10", {1: 21_321, 2: 24_518}),
}


@dataclass
class SimulatedTrial:
    """A trial: what is left of it in images, and where it runs."""

    network: Network
    images: float
    start: float = START_SECONDS  # seconds before it trains
    cards: list[int] = field(default_factory=list)


class Simulation:
    """Trials on cards from one event to the next.

    Args:
        trials: in the order in which the search proposes them.
        cards: how many there are.
        way: one of WAYS.
    """

    def __init__(self, trials: Sequence[SimulatedTrial], cards: int, way: str):
        self._waiting, self._way = list(trials), way
        self._on: list[list[SimulatedTrial]] = [[] for _ in range(cards)]
        self._running: list[SimulatedTrial] = []
        self.seconds, self.idle = 0.0, 0.0
        self.trained = [0.0] * cards  # seconds with a trial, of each card

    def run(self) -> None:
        """Go on until every trial has ended."""
        while self._waiting or self._running:
            self._place()
            if not self._waiting and self._way in ("spread", "sorted"):
                self._move()
                self._spread()
            step = min(trial.start + trial.images / self._speed(trial) for trial in self._running)
            step = min([step, *(trial.start for trial in self._running if trial.start > 0)])
            self._advance(step)

    def _place(self) -> None:
        """Begin waiting trials in their order, on the card with the fewest, where one has a place for them."""
        while self._waiting:
            trial = self._waiting[0]
            limit = 1 if self._way == "one" else trial.network.per_card
            card = min(range(len(self._on)), key=lambda card: len(self._on[card]))
            others = self._on[card]
            if len(others) >= min([limit, *(other.network.per_card for other in others if self._way != "one")]):
                return
            trial.cards = [card]
            others.append(trial)
            self._running.append(self._waiting.pop(0))

    def _move(self) -> None:
        """Move trials from the fullest cards to idle ones, where they have more than the move takes left."""
        for free in [card for card, trials in enumerate(self._on) if not trials]:
            full = max(self._on, key=len)
            if len(full) < 2:
                return
            trial = max(full, key=lambda trial: trial.images / trial.network.together[1])
            if trial.images / trial.network.speed(len(full)) < 2 * RESTART_SECONDS:
                return
            full.remove(trial)
            self._on[free].append(trial)
            trial.cards = [free]
            trial.start += RESTART_SECONDS

    def _spread(self) -> None:
        """Give trials that are alone on a card an idle one too, those with the most left first, if that is faster."""
        free = [card for card, trials in enumerate(self._on) if not trials]
        for trial in sorted(self._running, key=lambda trial: -trial.images / trial.network.together[1]):
            fast = trial.network.on_two
            if not free or fast is None or len(trial.cards) > 1 or len(self._on[trial.cards[0]]) > 1:
                continue
            if RESTART_SECONDS + trial.images / fast < trial.images / trial.network.together[1]:
                trial.cards.append(free.pop())
                self._on[trial.cards[-1]].append(trial)
                trial.start += RESTART_SECONDS

    def _speed(self, trial: SimulatedTrial) -> float:
        if len(trial.cards) > 1:
            assert trial.network.on_two is not None
            return trial.network.on_two
        return trial.network.speed(len(self._on[trial.cards[0]]))

    def _advance(self, seconds: float) -> None:
        speeds = [self._speed(trial) for trial in self._running]
        for card, trials in enumerate(self._on):
            if trials:
                self.trained[card] += seconds
            else:
                self.idle += seconds
        self.seconds += seconds
        for trial, speed in zip(self._running, speeds, strict=True):
            if trial.start > 0:
                trial.start = max(0.0, trial.start - seconds)
            else:
                trial.images -= seconds * speed
        for trial in [trial for trial in self._running if trial.images < 1e-3]:
            self._running.remove(trial)
            for card in trial.cards:
                self._on[card].remove(trial)


def draw_trials(networks: dict[str, Network], count: int, seed: int) -> list[SimulatedTrial]:
    """Draw a study: three small trials for each large one, in random order."""
    generator = random.Random(seed)
    names = ("resnet9", "resnet9", "resnet9", "wrn_28_10")
    return [
        SimulatedTrial(networks[generator.choice(names)], EPOCHS * IMAGES * generator.choice(STOPPED_AT))
        for _ in range(count)
    ]


def speeds_on_two(path: Path) -> dict[str, float]:
    """Read the fastest speed of each network on two cards, at one card's total batch, from a benchmark's record."""
    rows = json.loads(path.read_text())["tables"][0]["rows"]
    batches = {row["network"]: row["batch"] for row in rows if row["cards"] == 1}
    speeds: dict[str, float] = {}
    for row in rows:
        if row["cards"] == 2 and row["images/s"] and row["batch"] == batches.get(row["network"]):
            speeds[row["network"]] = max(speeds.get(row["network"], 0.0), row["images/s"])
    return speeds


def simulate(networks: dict[str, Network], trials: int, seed: int) -> list[dict[str, Any]]:
    """A row for each number of cards and way, with the same trials: `trials` for up to 8 cards, and for each 8 more."""
    rows = []
    for cards in CARDS:
        count = trials * max(1, cards // 8)
        for way in WAYS:
            drawn = draw_trials(networks, count, seed)
            if way in ("longest first", "sorted"):
                drawn.sort(key=lambda trial: trial.network.together[1])
            simulation = Simulation(drawn, cards, way)
            simulation.run()
            rows.append({
                "cards": cards, "trials": count, "way": way, "minutes": simulation.seconds / 60,
                "idle %": 100 * simulation.idle / (cards * simulation.seconds),
                "least busy card, minutes": min(simulation.trained) / 60,
            })  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Simulate and print."""
    parser = OneLineParser(prog="python -m benchmarks.studies.spread_simulation", description=__doc__)
    parser.add_argument("--several", type=Path, metavar="FILE", help="several_cards_table.json of gpu.several_cards")
    parser.add_argument("--on-two", nargs="+", default=[], metavar="NETWORK=SPEED", help="images/s, instead of a file")
    parser.add_argument("--trials", type=int, default=200, help="for each 8 cards, and for fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    args = parser.parse_args(arguments)
    around = environment()
    on_two = {} if args.several is None else speeds_on_two(args.several)
    for name, _, speed in (text.partition("=") for text in args.on_two):
        on_two[name] = float(speed)
    networks = {name: Network(name, network.together, on_two.get(name)) for name, network in NETWORKS.items()}
    rows = simulate(networks, args.trials, args.seed)
    goals = [
        Goal(what=f"{row['cards']} cards, {row['way']}: idle", limit=MAX_IDLE, found=row["idle %"], unit="%")
        for row in rows if row["way"] in ("longest first", "spread")
    ]  # fmt: skip
    known = ", ".join(f"{name} {speed:,.0f}" for name, speed in on_two.items()) or "none"
    record = Measurement(
        name="spread_simulation", settings={"trials": args.trials, "seed": args.seed}, goals=goals,
        tables=[Table(title="Small and large trials on many cards, simulated", columns=tuple(rows[0]), rows=rows)],
        notes=[f"measured speeds of one trial on two cards, images/s: {known}"],
    )  # fmt: skip
    after = load()
    if args.json is not None:
        content = {**record.to_json(), "environment": {**around, "load_after": after}}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    show(record, header(around, record.settings, after))
    return 0


if __name__ == "__main__":
    sys.exit(main())
