"""Compare the pages on studies whose journals are kept in docs/results with these journals.

    python docs/check_results.py

The studies are `tt_schedule`, `tt_dims` on the digits (whose figures the README shows too) and `compress` on an H200.
Prints every statement of a page that a journal contradicts; exits with 1 if there is one.
"""

from __future__ import annotations

import gzip
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from analysis.stats.front import collect_points, pareto_front, references
from analysis.utils import method_label
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS / "h200_tt_schedule_cifar10.md"
DIGITS, COMPRESS = "digits_tt_dims", "h200_compress_space"  # each the name of a page and of a journal
STUDY, RETRAINED = "tt_schedule", "tt_schedule_finish"  # of the second, each trial had been stopped in the first
EPOCHS = 128
RUNGS = (8, 24, 72)  # epochs after which trials were stopped
FRONT_ROW = re.compile(r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
RETRAINED_ROW = re.compile(
    r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) after (\d+) \| ([\d.]+) \| (none so small|[\d.]+) \|$", re.MULTILINE
)

# Rows of a printed table: parameters, validation error, status
PRINTED_ROW = re.compile(
    r"^[* ] [A-Za-z -]+.*? ([\d,]+) +[\d.]+ +\S+ +\S+ +([\d.]+) .*?(completed|stopped early|reference)$", re.MULTILINE
)
# Parameters, method, error before any training, trained with the teacher, trained on labels
COMPRESSED_ROW = re.compile(
    r"^\| ([\d,]+) \| [\d.]+ \| ([^|]+) \| \d+ \| ([\d.]+) \| ([\d.]*) ?\| ([\d.]*) ?\|$", re.MULTILINE
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


def compare_digits(study: StudyRecord, page: str, readme: str) -> Iterator[str]:
    """Compare the printed table, and the figures under the README's picture."""
    points = collect_points(study)
    labels = {Role.REFERENCE: "reference"}
    statuses = {Status.COMPLETED: "completed", Status.STOPPED: "stopped early"}
    expected = [
        (f"{point.params:,}", f"{point.own_error:.2f}" if point.finished else f"{point.val_error:.2f}",
         labels.get(point.role, statuses[point.status]))
        for point in points
    ]  # fmt: skip
    yield from compare_rows("printed table", sorted(expected), sorted(PRINTED_ROW.findall(page)))
    front, compared = pareto_front(points), {point.method: point for point in references(points)}
    text = " ".join(readme.split())
    statements = (
        f"A tensor train of {front[-1].params:,} parameters has {front[-1].error:.2f} % validation error",
        f"one) of {compared['separable'].params:,} has {compared['separable'].error:.2f} %",
        f"the dense one of {compared['dense'].params:,} has {compared['dense'].error:.2f} %",
    )
    yield from (f"the README lacks the statement: {statement}" for statement in statements if statement not in text)


def compare_compressed(study: StudyRecord, page: str) -> Iterator[str]:
    """Compare the table of every training, and the thinner networks."""
    errors: dict[tuple[int, str], list[str]] = {}
    before: dict[tuple[int, str], list[float]] = {}
    for trial in study.trials.values():
        if trial.role is not Role.SEARCH or trial.status is not Status.COMPLETED:
            continue
        key = trial.counts["params"], method_label(trial.method)
        taught = trial.built_specification.train.kd_weight > 0
        errors.setdefault(key, ["", ""])[not taught] = f"{trial.val_error:.2f}"
        before.setdefault(key, []).append(trial.initial_error or 0.0)
    expected = [
        (f"{key[0]:,}", key[1], f"{fmean(before[key]):.2f}", *errors[key]) for key in sorted(errors)
    ]  # fmt: skip
    shown = [(row[0], row[1].strip(), *row[2:]) for row in COMPRESSED_ROW.findall(page)]
    yield from compare_rows("every training", expected, shown)
    text = " ".join(page.split())
    for point in references(collect_points(study)):
        if point.is_thin and f"{point.error:.2f} at {point.params:,}" not in text:
            yield f"the page lacks the thinner network: {point.error:.2f} at {point.params:,}"


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
    readme = (RESULTS.parents[1] / "README.md").read_text()
    pages = {
        PAGE.name: faults,
        f"{DIGITS}.md": list(compare_digits(read_study(DIGITS), (RESULTS / f"{DIGITS}.md").read_text(), readme)),
        f"{COMPRESS}.md": list(compare_compressed(read_study(COMPRESS), (RESULTS / f"{COMPRESS}.md").read_text())),
    }
    for name, statements in pages.items():
        print("\n".join(f"{name}: {statement}" for statement in statements) or f"{name} agrees with its records")
    return 1 if any(pages.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
