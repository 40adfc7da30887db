"""Compare the page on the study `tt_schedule` with that study's journal, both kept in docs/results.

    python docs/check_results.py

Prints every statement of the page that the journal contradicts; exits with 1 if there is one.
"""

from __future__ import annotations

import gzip
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from analysis.stats.front import collect_points, pareto_front, references
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS / "h200_tt_schedule_cifar10.md"
STUDY, RETRAINED = "tt_schedule", "tt_schedule_finish"  # of the second, each trial had been stopped in the first
EPOCHS = 128
RUNGS = (8, 24, 72)  # epochs after which trials were stopped
FRONT_ROW = re.compile(r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
RETRAINED_ROW = re.compile(
    r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) after (\d+) \| ([\d.]+) \| (none so small|[\d.]+) \|$", re.MULTILINE
)


def read_study(name: str) -> StudyRecord:
    """Read a study from its compressed journal.

    Args:
        name: the journal is docs/results/NAME.journal.jsonl.gz.

    Returns:
        The study's record.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, JOURNAL_FILE).write_bytes(gzip.decompress((RESULTS / f"{name}.journal.jsonl.gz").read_bytes()))
        return load_study(Path(folder))


def compare_front(study: StudyRecord, page: str) -> Iterator[str]:
    """Compare the table of the Pareto front and the references."""
    points = collect_points(study)
    shown = sorted([*pareto_front(points), *references(points)], key=lambda point: point.params)
    expected = [(f"{point.params:,}", f"{point.error:.2f}", f"{point.test_error:.2f}") for point in shown]
    yield from compare_rows("front", expected, FRONT_ROW.findall(page))


def compare_counts(study: StudyRecord, page: str) -> Iterator[str]:
    """Compare how many trials and epochs were trained, and how many trials were stopped after each rung."""
    searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH]
    statuses = [trial.status for trial in searched]
    stopped = [sum(trial.status is Status.STOPPED and trial.last_epoch == rung for trial in searched) for rung in RUNGS]
    epochs = sum(len(trial.epochs) for trial in study.trials.values())
    settings = sum(1 + len(trial.aliases) for trial in searched)
    statements = (
        f"{settings} settings",
        f"{statuses.count(Status.COMPLETED)} of the {len(searched)} and the separable reference",
        "stopped {} after {} epochs, {} after {} and {} after {}".format(
            *(number for pair in zip(stopped, RUNGS, strict=True) for number in pair)
        ),
        f"In all {epochs:,} epochs",
    )
    text = " ".join(page.split())
    yield from (f"the page lacks the statement: {statement}" for statement in statements if statement not in text)
    if sum(stopped) != statuses.count(Status.STOPPED):
        yield f"{statuses.count(Status.STOPPED)} trials were stopped, but {sum(stopped)} of them after {RUNGS} epochs"


def compare_retrained(study: StudyRecord, retrained: StudyRecord, page: str) -> Iterator[str]:
    """Compare the table of the stopped trials that were trained to the last epoch afterwards."""
    best = [(point.params, point.error) for point in pareto_front(collect_points(study))]
    expected = []
    for trial in sorted(retrained.trials.values(), key=lambda trial: trial.counts["params"]):
        before, params = study.trials[trial.trial_id], trial.counts["params"]
        if (before.status, trial.status, trial.last_epoch) != (Status.STOPPED, Status.COMPLETED, EPOCHS):
            yield f"{trial.trial_id} was not stopped first and then trained for {EPOCHS} epochs"
        best_as_small = min((error for size, error in best if size <= params), default=None)
        compared = "none so small" if best_as_small is None else f"{best_as_small:.2f}"
        errors = f"{before.val_error:.2f}", str(before.last_epoch), f"{trial.val_error:.2f}"
        expected.append((f"{params:,}", *errors, compared))
    yield from compare_rows("retrained trials", expected, RETRAINED_ROW.findall(page))


def compare_rows(table: str, expected: list[tuple[str, ...]], shown: list[tuple[str, ...]]) -> Iterator[str]:
    """Name the rows in which a table of the page differs from the study."""
    yield from (f"{table}: the page lacks the row {row}" for row in expected if row not in shown)
    yield from (f"{table}: the study has no such row: {row}" for row in shown if row not in expected)
    if not expected or (sorted(expected) == sorted(shown) and expected != shown):
        yield f"{table}: no rows, or not in the order of size"


def main() -> int:
    """Print what the page says wrongly.

    Returns:
        1 if there is anything, else 0.
    """
    page, study = PAGE.read_text(), read_study(STUDY)
    faults = [*compare_front(study, page), *compare_counts(study, page)]
    faults += compare_retrained(study, read_study(RETRAINED), page)
    print("\n".join(f"{PAGE.name}: {fault}" for fault in faults) or f"{PAGE.name} agrees with its journals")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
