"""Which card of a study trained what, and how long each was idle, from the study's own records.

    python -m benchmarks.gpu.card_use STUDY [--cards 2]

A card is idle while no trial trains an epoch on it: while trials start, load or end, and while there is none. Counted
from the start of the first trial to the last epoch, and from there to the start of the last trial alone, up to which
others waited.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measurement import Goal, Measurement, Table, environment, header, load, show
from lowrank.utils import OneLineParser
from sweeps.records.events import EventFields
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import JOURNAL_FILE

MAX_IDLE = 5.0  # percent: the goal
Interval = tuple[float, float]


@dataclass(frozen=True)
class TrialOnCard:
    """What one attempt at a trial did on a card: when it began, and its epochs, in seconds since the epoch."""

    trial: TrialRecord
    card: str
    begin: float
    epochs: tuple[Interval, ...]


def attempts_on_cards(record: StudyRecord) -> Iterator[TrialOnCard]:
    """Yield each attempt once for each of its cards.

    The record of an attempt comes with its first epoch, so the attempt began that epoch and its start before.
    """
    for trial in record.trials.values():
        ends = [*(float(attempt["time"]) for attempt in trial.attempts[1:]), float("inf")]
        for attempt, end in zip(trial.attempts, ends, strict=False):  # a trial that waits has no attempt, but an end
            epochs = [
                (epoch["time"] - epoch["epoch_seconds"], epoch["time"])
                for epoch in trial.epochs.values() if attempt["time"] <= epoch["time"] < end
            ]  # fmt: skip
            first = epochs[0][0] if epochs else float(attempt["time"])
            for card in cards_of(attempt):
                yield TrialOnCard(trial, card, first - float(attempt.get("start_seconds", 0.0)), tuple(epochs))


def cards_of(attempt: EventFields) -> list[str]:
    """Name the cards of an attempt; the CPU where it has none."""
    return [f"{attempt.get('host')} {card}" for card in attempt.get("cards", ["cpu"])]


def covered(intervals: Sequence[Interval], begin: float, end: float) -> float:
    """Length of the union of intervals between two moments."""
    total, reached = 0.0, begin
    for start, stop in sorted(intervals):
        stop_inside = min(stop, end)
        total += max(0.0, stop_inside - max(start, reached))
        reached = max(reached, stop_inside)
    return total


def card_rows(record: StudyRecord, cards: int) -> list[dict[str, Any]]:
    """A row for each card, and one for those that were never used.

    Args:
        record: of the study.
        cards: how many there are.
    """
    attempts = list(attempts_on_cards(record))
    if not any(attempt.epochs for attempt in attempts):
        return []
    begin = min(attempt.begin for attempt in attempts)
    last_start = max(attempt.begin for attempt in attempts)
    end = max(stop for attempt in attempts for _, stop in attempt.epochs)
    table = []
    names = sorted({attempt.card for attempt in attempts})
    for name in [*names, *(f"unused {number}" for number in range(cards - len(names)))]:
        on_card = [attempt for attempt in attempts if attempt.card == name]
        epochs = [epoch for attempt in on_card for epoch in attempt.epochs]
        sizes = Counter(_size(attempt.trial) for attempt in on_card)
        seconds = sum(stop - start for start, stop in epochs)
        table.append({
            "card": name, "trials": ", ".join(f"{count} of width {size}" for size, count in sorted(sizes.items())),
            "epochs": len(epochs), "minutes": (end - begin) / 60, "trials at once": seconds / max(1e-9, end - begin),
            "idle %": _idle(epochs, begin, end), "idle while others waited %": _idle(epochs, begin, last_start),
        })  # fmt: skip
    return table


def _idle(epochs: Sequence[Interval], begin: float, end: float) -> float:
    return 100 * (1 - covered(epochs, begin, end) / max(1e-9, end - begin))


def _size(trial: TrialRecord) -> str:
    network = trial.specification.network if trial.specification else None
    return str(getattr(network, "width", "?"))


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns 1 where nothing was trained."""
    parser = OneLineParser(prog="python -m benchmarks.gpu.card_use", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("--cards", type=int, default=1, help="how many cards there are (those that were used)")
    args = parser.parse_args(arguments)
    around, record = environment(), fold_journal(args.study / JOURNAL_FILE)
    rows = card_rows(record, args.cards)
    if not rows:
        print("no epoch was trained")
        return 1
    idle = sum(row["idle %"] for row in rows) / len(rows)
    waited = sum(row["idle while others waited %"] for row in rows) / len(rows)
    states = Counter(str(trial.status) for trial in record.trials.values())
    goals = [Goal(what="idle until the last epoch", limit=MAX_IDLE, found=idle, unit="%"),
             Goal(what="idle while trials waited", limit=MAX_IDLE, found=waited, unit="%")]  # fmt: skip
    notes = [f"trials: {', '.join(f'{count} {state}' for state, count in states.items())}"]
    notes += [f"{run.get('slots')} trials at once, each on {run.get('gpus'):g} GPU ({run.get('sharing')})"
              for run in record.runs]  # fmt: skip
    settings = {"study": args.study.name, "cards": len(rows)}
    table = Table(title="What each card did", columns=tuple(rows[0]), rows=rows)
    show(Measurement(name="card_use", settings=settings, tables=[table], goals=goals, notes=notes),
         header(around, settings, load()))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
