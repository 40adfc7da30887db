"""The final table of a study, for the terminal and as CSV; the front is marked, and nothing is left unexplained."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.stats.front import FrontPoint, collect_points, pareto_front
from analysis.utils.formatting import method_label, status_label
from sweeps.records.events import Role, Status
from sweeps.records.model import StudyRecord
from sweeps.records.reasons import reasons_by_method

PIPED_WIDTH = 100  # columns where there is no terminal to ask
REASONS = 3  # shown of each ending
STATUS_STYLES = {
    Status.COMPLETED: "", Status.STOPPED: "dim", Status.DIVERGED: "red", Status.FAILED: "red",
    Status.OUT_OF_MEMORY: "red", Status.RUNNING: "cyan", Status.PROPOSED: "dim",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    point: FrontPoint
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Endings:
    """How many trials ended in one way, and their commonest reasons."""

    status: Status
    count: int
    reasons: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """One line, e.g. `2 diverged: loss is NaN in epoch 2 (2)`; of what cannot be one more for each method."""
        if self.status is Status.INFEASIBLE and len(self.reasons) > 1:
            listed = [f"\n  {reason} ({count})" for reason, count in self.reasons]
            return f"{self.count} infeasible, at the largest budget that each method cannot meet:{''.join(listed)}"
        shown = [f"{reason} ({count})" for reason, count in self.reasons[:REASONS]]
        rest = sum(count for _, count in self.reasons[REASONS:])
        shown += [f"others ({rest})"] if rest else []
        return f"{self.count} {status_label(self.status)}" + (f": {'; '.join(shown)}" if shown else "")


def rows(study: StudyRecord) -> list[Row]:
    """All trials of known size, by size; the points of the front are marked."""
    points = collect_points(study)
    best = {point.trial_id for point in pareto_front(points)}
    return [Row(point=point, on_front=point.trial_id in best) for point in points]


def endings(study: StudyRecord) -> list[Endings]:
    """Counts by status, completed first, each with its reasons, commonest first."""
    found = []
    for status in Status:
        trials = [trial for trial in study.trials.values() if trial.status is status and not trial.broken]
        if trials:
            if status is Status.INFEASIBLE:
                told = reasons_by_method((trial.parameters, trial.reason) for trial in trials)
                found.append(Endings(status=status, count=len(trials), reasons=tuple(told.items())))
                continue
            # An early stop is no fault, and its reason (in the CSV) is each trial's own
            reasons = Counter(trial.reason for trial in trials if trial.reason and status is not Status.STOPPED)
            found.append(Endings(status=status, count=len(trials), reasons=tuple(reasons.most_common())))
    return sorted(found, key=lambda ending: ending.status is not Status.COMPLETED)


def lost_seeds(study: StudyRecord) -> list[str]:
    """A line for each setting of which some seeds have no result, e.g. `CP, 2 dims: 1 of 3 seeds diverged`."""
    points = [point for point in collect_points(study) if point.lost]
    return [f"{name}, {params:,} parameters: {lost}" for name, params, lost in
            dict.fromkeys((point.name, point.params, point.lost) for point in points)]  # fmt: skip


def broken_text(study: StudyRecord) -> str:
    """One line on the trials that were marked as broken, e.g. `1 marked as broken, in no figure: disk was full (1)`."""
    reasons = Counter(trial.broken for trial in study.trials.values() if trial.broken)
    if not reasons:
        return ""
    shown = [f"{reason} ({count})" for reason, count in reasons.most_common(REASONS)]
    return f"{sum(reasons.values())} marked as broken, in no figure: {'; '.join(shown)}"


def compact(count: float | None) -> str:
    """A count with about three digits and a unit, e.g. `24.2M`; empty for None."""
    if count is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1 if count < 100 * size else 0}f}{unit}"
    return f"{count:g}"


def make_table(study: StudyRecord) -> Table:
    """The table as rich draws it; a star marks the front."""
    lines = rows(study)
    tested = any(line.point.test_error is not None for line in lines)
    several = any(line.point.spread is not None for line in lines)
    gap = 0 if tested or several else 1  # 100 columns must do, with billions of parameters too
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("", width=1)
    table.add_column("method", no_wrap=True)
    share = () if several else ("% sep",)  # what there is no room for is in the CSV
    for heading in ("dims", "rank", "params", *share, "mult-adds", "decay", "val %"):
        table.add_column(heading, justify="right", no_wrap=True)
    if several:
        table.add_column("mean±sd (n)", justify="right", no_wrap=True)
    if tested:
        table.add_column("test %", justify="right", no_wrap=True)
    table.add_column("ep", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line, tested, several), style=_style(line))
    return table


def print_summary(study: StudyRecord, answer: str, console: Console | None = None) -> None:
    """Print the table, what became of every trial, and `answer`."""
    console = console or make_console(sys.stdout)
    console.print(Text(f"{study.name}: {study.header.get('question', '')}".rstrip(": "), style="bold"))
    console.print()
    console.print(make_table(study))
    console.print()
    for line in _legend(any(point.spread is not None for point in collect_points(study))):
        console.print(Text(line))
    console.print()
    for ending in endings(study):
        console.print(Text(ending.text()))
    for line in lost_seeds(study):
        console.print(Text(line))
    if broken := broken_text(study):
        console.print(Text(broken))
    console.print()
    console.print(Text(answer))


def _legend(several: bool) -> tuple[str, str]:
    first, second = "* on the front of validation error and parameters", "decay marked c is scaled by the compression"
    if several:
        means = "mean±sd (n): over n seeds of a setting"
        return f"{first}; {means}", f"  {second}; ep: epochs trained"
    share = "% sep: share of the separable network's"
    return f"{first}; {share}", f"  parameters; {second}; ep: epochs trained"


def make_console(stream: IO[str]) -> Console:
    """A console as wide as the terminal, or 100 columns where the output is piped (unless COLUMNS says otherwise)."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=PIPED_WIDTH)


def write_csv(study: StudyRecord, path: Path) -> None:
    """Write all rows with full numbers: the fields of FrontPoint and whether the point is on the front."""
    names = [field.name for field in fields(FrontPoint)]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "on_front"])
        for line in rows(study):
            writer.writerow([*(getattr(line.point, name) for name in names), line.on_front])
    os.replace(temporary, path)


def _cells(line: Row, tested: bool, several: bool) -> list[str]:
    point = line.point
    cells = [
        "*" if line.on_front else "",
        method_label(point.method),
        "" if point.dims is None else str(point.dims),
        "" if point.rank_scale is None else f"{point.rank_scale:.2f}",
        f"{point.params:,}",
        *([] if several else ["" if point.ratio is None else f"{100 * point.ratio:.1f}"]),
        compact(point.mult_adds),
        "" if point.weight_decay is None else _decay(point.weight_decay, bool(point.scaled_decay)),
        "" if point.val_error is None else f"{point.val_error:.2f}",
    ]
    if several:
        cells.append(_over_seeds(point))
    if tested:
        cells.append("" if point.test_error is None else f"{point.test_error:.2f}")
    done = point.role is Role.REFERENCE and point.status is Status.COMPLETED
    return [*cells, str(point.epochs or ""), "reference" if done else status_label(point.status)]


def _over_seeds(point: FrontPoint) -> str:
    """Mean and sample standard deviation of a setting of several seeds, once: in the row of its first."""
    if point.spread is None or not point.leads:
        return ""
    return f"{point.error:.2f}±{point.spread:.2f} ({point.seeds})"


def _decay(value: float, scaled: bool) -> str:
    return f"{value:.1e}".replace("e-0", "e-") + ("c" if scaled else " ")


def _style(line: Row) -> str:
    if line.on_front:
        return "bold green"
    return "magenta" if line.point.role is Role.REFERENCE else STATUS_STYLES.get(line.point.status, "")
