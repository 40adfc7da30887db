"""Which card of a study trained what, and how long each was idle, from the study's own records.

    python -m benchmarks.gpu.card_use STUDY [--cards 2]

A card is busy while at least one trial trains or validates on it. It is idle while trials are only set up, compile or
record their first step, save or end there, and while there is none. Counted is the time in which trials wait: from the
first step of the study until its last trial starts, or until the last epoch where the study was cut short. What comes
before and after is said beside it: no card can train before the first step, and no trial is left for a place that comes
free after the last start.

The columns: trials that trained at once, in the mean; idle time, and the part of it in which a trial started on the
card; idle time after the last start.
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
    """What one attempt at a trial did on a card: when its start began, and when it trained, in seconds since 1970."""

    trial: TrialRecord
    card: str
    begin: float
    epochs: tuple[Interval, ...]


def attempts_on_cards(record: StudyRecord) -> Iterator[TrialOnCard]:
    """Yield each attempt once for each of its cards.

    The record of an attempt comes with its first epoch, so the attempt began that epoch and its start before. An epoch
    begins once its step is compiled and recorded.
    """
    for trial in record.trials.values():
        ends = [*(float(attempt["time"]) for attempt in trial.attempts[1:]), float("inf")]
        for attempt, end in zip(trial.attempts, ends, strict=False):  # a trial that waits has no attempt, but an end
            own = [epoch for epoch in trial.epochs.values() if attempt["time"] <= epoch["time"] < end]
            first = own[0]["time"] - own[0]["epoch_seconds"] if own else float(attempt["time"])
            epochs = tuple(
                (epoch["time"] - epoch["epoch_seconds"] + epoch.get("compile_seconds", 0.0), epoch["time"])
                for epoch in own
            )  # fmt: skip
            for card in cards_of(attempt):
                yield TrialOnCard(trial, card, first - float(attempt.get("start_seconds", 0.0)), epochs)


@dataclass(frozen=True)
class Times:
    """Of a study: its command, its first step, the start of its last trial and its last epoch, since 1970.

    `last_start` is that of the last epoch where the study did not come to all of its trials.
    """

    command: float
    first_step: float
    last_start: float
    last_epoch: float

    @staticmethod
    def of(record: StudyRecord, attempts: Sequence[TrialOnCard]) -> Times:
        """Read them off the attempts, at least one of which has trained an epoch."""
        first_step = min(start for attempt in attempts for start, _ in attempt.epochs)
        last_epoch = max(stop for attempt in attempts for _, stop in attempt.epochs)
        last_start = max(attempt.begin for attempt in attempts) if record.finished_ends else last_epoch
        command = min((run["time"] - run.get("since", 0.0) for run in record.runs if "time" in run), default=first_step)
        return Times(command, first_step, max(first_step, last_start), last_epoch)


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
    times = Times.of(record, attempts)
    table = []
    names = sorted({attempt.card for attempt in attempts})
    for name in [*names, *(f"unused {number}" for number in range(cards - len(names)))]:
        on_card = [attempt for attempt in attempts if attempt.card == name]
        epochs = [epoch for attempt in on_card for epoch in attempt.epochs]
        starts = [(attempt.begin, attempt.epochs[0][0]) for attempt in on_card if attempt.epochs]
        sizes = Counter(_size(attempt.trial) for attempt in on_card)
        waiting = (times.first_step, times.last_start)
        idle = _idle(epochs, *waiting)
        seconds = sum(covered([epoch], *waiting) for epoch in epochs)
        table.append({
            "card": name, "trials": ", ".join(f"{count} of width {size}" for size, count in sorted(sizes.items())),
            "epochs": len(epochs), "at once": seconds / max(1e-9, times.last_start - times.first_step),
            "idle %": idle, "starting %": idle - _idle([*epochs, *starts], *waiting),
            "idle at end %": _idle(epochs, times.last_start, times.last_epoch),
        })  # fmt: skip
    return table


def phases(record: StudyRecord) -> str:
    """How long a study with rows took before, while and after its trials waited for places, in one line."""
    times = Times.of(record, list(attempts_on_cards(record)))
    end = "until its last trial started" if record.finished_ends else "until its last epoch: it was cut short"
    return (
        f"{times.first_step - times.command:.0f} s from the command to the first step, "
        f"{times.last_start - times.first_step:.0f} s {end} (counted), "
        f"{times.last_epoch - times.last_start:.0f} s until the last epoch"
    )


def _idle(busy: Sequence[Interval], begin: float, end: float) -> float:
    """Percent of the time between two moments that is in no interval; 0 where there is no such time."""
    return 100 * (1 - covered(busy, begin, end) / (end - begin)) if end > begin else 0.0


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
    states = Counter(str(trial.status) for trial in record.trials.values())
    goals = [Goal(what="idle while trials waited", limit=MAX_IDLE, found=idle, unit="%")]
    notes = [phases(record), f"trials: {', '.join(f'{count} {state}' for state, count in states.items())}"]
    notes += [f"{run.get('slots')} trials at once, each on {run.get('gpus'):g} GPU ({run.get('sharing')})"
              for run in record.runs]  # fmt: skip
    settings = {"study": args.study.name, "cards": len(rows)}
    table = Table(title="What each card did", columns=tuple(rows[0]), rows=rows)
    show(Measurement(name="card_use", settings=settings, tables=[table], goals=goals, notes=notes),
         header(around, settings, load()))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
