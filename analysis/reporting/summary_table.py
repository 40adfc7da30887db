"""The summary of a study for the terminal: its table, how every trial ended, the answer; and the table as CSV."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.stats import (
    DENSE,
    FrontPoint,
    ShareBase,
    mixed_fields,
    mixed_text,
    pareto_front,
    share_base,
    trials_off_front,
)
from analysis.utils import method_label, status_label, write_csv
from lowrank.utils import format_count, format_counted, format_times
from sweeps.records import Role, Status, StudyRecord, count_test_looks, reasons_by_method

PIPED_WIDTH = 100  # columns where there is no terminal to ask
SHOWN_REASONS = 3  # of each status
STATUS_STYLES = {
    Status.COMPLETED: "", Status.STOPPED: "dim", Status.DIVERGED: "red", Status.FAILED: "red",
    Status.OUT_OF_MEMORY: "red", Status.RUNNING: "cyan", Status.PROPOSED: "dim",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the table."""

    point: FrontPoint
    on_front: bool
    left_front: bool = False  # tested when its setting was on the front, and no longer there


@dataclass(frozen=True, kw_only=True)
class StatusCount:
    """How many trials have one status; (reason, trials) by number of trials."""

    status: Status
    count: int
    reasons: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """Return one line, e.g. `2 diverged: loss is NaN (2)`; infeasible: a line a method."""
        if self.status is Status.INFEASIBLE and len(self.reasons) > 1:
            listed = [f"\n  {reason} ({count})" for reason, count in self.reasons]
            return f"{self.count} infeasible, at the largest budget that each method cannot meet:{''.join(listed)}"
        texts = [f"{reason} ({count})" for reason, count in self.reasons[:SHOWN_REASONS]]
        others = sum(count for _, count in self.reasons[SHOWN_REASONS:])
        texts += [f"others ({others})"] if others else []
        return f"{self.count} {status_label(self.status)}" + (f": {'; '.join(texts)}" if texts else "")


def summary_rows(points: Sequence[FrontPoint]) -> list[SummaryRow]:
    """Return a row for each point, in the same order, with a mark for the front.

    Args:
        points: of all trials of a study, as `collect_points` returns them.

    Returns:
        The rows.
    """
    front, former = {point.trial_id for point in pareto_front(points)}, trials_off_front(points)
    return [
        SummaryRow(point=point, on_front=point.trial_id in front, left_front=point.trial_id in former)
        for point in points
    ]


def count_statuses(study: StudyRecord) -> list[StatusCount]:
    """Count the trials of a study by status, with their reasons.

    Args:
        study: the records.

    Returns:
        A count for each status that a trial has, completed first; trials marked as broken are left out.
    """
    counts = []
    for status in Status:
        trials = [trial for trial in study.trials.values() if trial.status is status and not trial.broken]
        if not trials:
            continue
        if status is Status.INFEASIBLE:
            reasons = tuple(reasons_by_method((trial.parameters, trial.reason) for trial in trials).items())
        else:
            # Every early stop has a reason of its own, which stands in the CSV
            texts = [trial.reason for trial in trials if trial.reason and status is not Status.STOPPED]
            reasons = tuple(Counter(texts).most_common())
        counts.append(StatusCount(status=status, count=len(trials), reasons=reasons))
    return sorted(counts, key=lambda count: count.status is not Status.COMPLETED)


def describe_missing_seeds(points: Sequence[FrontPoint]) -> list[str]:
    """Return a line for each setting of which some seeds have no result.

    Args:
        points: of all trials of a study, as `collect_points` returns them.

    Returns:
        E.g. `CP, 2 dims, 1,000 parameters: 1 of 3 seeds diverged`.
    """
    settings = dict.fromkeys((point.name, point.params, point.lost) for point in points if point.lost)
    return [f"{name}, {params:,} parameters: {lost}" for name, params, lost in settings]


def describe_broken(study: StudyRecord) -> str:
    """Return one line on the trials marked as broken, with their commonest reasons.

    Args:
        study: the records.

    Returns:
        E.g. `1 marked as broken, in no figure: disk was full (1)`; "" where none is.
    """
    reasons = Counter(trial.broken for trial in study.trials.values() if trial.broken)
    if not reasons:
        return ""
    texts = [f"{reason} ({count})" for reason, count in reasons.most_common(SHOWN_REASONS)]
    return f"{sum(reasons.values())} marked as broken, in no figure: {'; '.join(texts)}"


def make_table(points: Sequence[FrontPoint], base: ShareBase) -> Table:
    """Return the table for the terminal; a star marks the front.

    Args:
        points: of all trials of a study, as `collect_points` returns them.
        base: the network of whose parameters sizes are shares.

    Returns:
        The table.
    """
    lines = summary_rows(points)
    tested = any(line.point.test_error is not None for line in lines)
    several = any(line.point.spread is not None for line in lines)
    started = any(line.point.initial_error is not None for line in lines)
    gap = 0 if tested or several else 1  # 100 columns must do, with billions of parameters too
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("", width=1)
    table.add_column("method", no_wrap=True)
    uneven = any(line.point.balanced_apart is not None for line in lines)
    shared = _has_room_for_shares(points)
    share = () if not shared else ("% dense" if base == DENSE else "% sep",)
    # A study of trained networks has neither dimensions nor one rank for all layers; how it starts matters there
    shape, decay = ((), ("start %",)) if started else (("dims", "rank"), ("decay",))
    for heading in (*shape, "params", *share, "mult-adds", *decay, "val %", *(("bal %",) if uneven else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    if several:
        table.add_column("mean±sd (n)", justify="right", no_wrap=True)
    if tested:
        table.add_column("test %", justify="right", no_wrap=True)
    table.add_column("ep", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    taught = _has_taught_and_untaught(points)
    for line in lines:
        cells = _cells(line, tested, several, started, base if shared else None, uneven)
        if taught and line.point.teacher:
            cells[1] += " t"
        table.add_row(*cells, style=_style(line))
    return table


def _has_taught_and_untaught(points: Sequence[FrontPoint]) -> bool:
    """Whether some trials have a teacher and some have none; their rows would look alike without a mark."""
    return len({bool(point.teacher) for point in points if point.role is not Role.REFERENCE}) > 1


def _has_room_for_shares(points: Sequence[FrontPoint]) -> bool:
    """Whether 100 columns have room for shares of the network too; the CSV has what does not fit here."""
    several = any(point.spread is not None for point in points)
    tested = any(point.test_error is not None for point in points)
    uneven = any(point.balanced_apart is not None for point in points)
    return not several and not (uneven and tested)


def print_summary(
    study: StudyRecord, points: Sequence[FrontPoint], answer: str, console: Console | None = None
) -> None:
    """Print the table, how every trial ended, and the answer.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        answer: printed last.
        console: to print on; None for standard output.
    """
    console = console or make_console(sys.stdout)
    console.print(Text(f"{study.name}: {study.header.question}".rstrip(": "), style="bold"))
    console.print()
    started = any(point.initial_error is not None for point in points)
    base: ShareBase = "dense" if started else share_base(study)
    console.print(make_table(points, base))
    console.print()
    uneven = any(point.balanced_apart is not None for point in points)
    several = any(point.spread is not None for point in points)
    for line in _legend(several, started, base if _has_room_for_shares(points) else None):
        console.print(Text(line))
    if _has_taught_and_untaught(points):
        console.print(Text("  t: trained with a teacher"))
    if uneven:
        console.print(Text("  bal %: the mean over classes of the validation error on their images"))
    console.print()
    for count in count_statuses(study):
        console.print(Text(count.text()))
    for line in describe_missing_seeds(points):
        console.print(Text(line))
    if looks := count_test_looks(study):
        console.print(Text(_looks_line(looks, points)))
    if mark := mixed_text(mixed_fields(study)):
        console.print(Text(mark))
    if broken := describe_broken(study):
        console.print(Text(broken))
    console.print()
    console.print(Text(answer))


def _legend(several: bool, started: bool, base: ShareBase | None) -> tuple[str, str]:
    first, second = "* on the front of validation error and parameters", "decay marked c is scaled by the compression"
    if started:
        second = "start %: validation error before any training"
    if several:
        means = "mean±sd (n): over n seeds of a setting"
        return f"{first}; {means}", f"  {second}; ep: epochs trained"
    if base is None:
        return first, f"  {second}; ep: epochs trained"
    short, network = ("dense", "trained" if started else "dense") if base == DENSE else ("sep", "separable")
    share = f"% {short}: share of the {network} network's"
    return f"{first}; {share}", f"  parameters; {second}; ep: epochs trained"


def _looks_line(looks: int, points: Sequence[FrontPoint]) -> str:
    tested, departed = sum(point.test_error is not None for point in points), len(trials_off_front(points))
    since = f"; test errors in brackets: {departed} that left the front since" if departed else ""
    return f"test split: looked at {format_times(looks)}, {format_counted(tested, 'trial')}{since}"


def make_console(stream: IO[str]) -> Console:
    """Return a console as wide as the terminal, or of 100 columns for a pipe without COLUMNS."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=PIPED_WIDTH)


def write_summary_csv(points: Sequence[FrontPoint], path: Path) -> None:
    """Write every point with full numbers, and whether it is on the front.

    Args:
        points: of all trials of a study, as `collect_points` returns them.
        path: of the file; its folder must exist.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    names = [field.name for field in fields(FrontPoint)]
    lines = [[*(getattr(row.point, name) for name in names), row.on_front] for row in summary_rows(points)]
    write_csv(path, [*names, "on_front"], lines)


def _cells(
    line: SummaryRow, tested: bool, several: bool, started: bool, base: ShareBase | None, uneven: bool
) -> list[str]:  # fmt: skip
    point = line.point
    cells = [
        "*" if line.on_front else "",
        method_label(point.method),
        *([] if started else _shape(point)),
        f"{point.params:,}",
        *([] if base is None else [_share(point.share_of(base))]),
        "" if point.mult_adds is None else format_count(point.mult_adds),
        _initial_error(point) if started else _decay_of(point),
        "" if point.val_error is None else f"{point.val_error:.2f}",
    ]
    if uneven:
        # That of several seeds is their mean, so it stands in the row of the first
        is_shown = point.balanced_error is not None and (point.leads or point.seeds == 1)
        cells.append(f"{point.balanced_error:.2f}" if is_shown else "")
    if several:
        cells.append(_over_seeds(point))
    if tested:
        test_error = "" if point.test_error is None else f"{point.test_error:.2f}"
        cells.append(f"({test_error})" if test_error and line.left_front else test_error)
    reference = point.role is Role.REFERENCE and point.status is Status.COMPLETED
    return [*cells, str(point.epochs or ""), "reference" if reference else status_label(point.status)]


def _over_seeds(point: FrontPoint) -> str:
    """Mean and sample standard deviation of a setting of several seeds, in the row of its first seed only."""
    if point.spread is None or not point.leads:
        return ""
    return f"{point.error:.2f}±{point.spread:.2f} ({point.seeds})"


def _shape(point: FrontPoint) -> list[str]:
    return [
        "" if point.dims is None else str(point.dims),
        "" if point.rank_scale is None else f"{point.rank_scale:.2f}",
    ]


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.1f}"


def _initial_error(point: FrontPoint) -> str:
    return "" if point.initial_error is None else f"{point.initial_error:.2f}"


def _decay_of(point: FrontPoint) -> str:
    return "" if point.weight_decay is None else _decay(point.weight_decay, bool(point.scaled_decay))


def _decay(value: float, scaled: bool) -> str:
    return f"{value:.1e}".replace("e-0", "e-") + ("c" if scaled else " ")


def _style(line: SummaryRow) -> str:
    if line.on_front:
        return "bold green"
    return "magenta" if line.point.role is Role.REFERENCE else STATUS_STYLES.get(line.point.status, "")
