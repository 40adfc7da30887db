"""Dimensions against rank: the lowest validation error in each cell, one map a method.

A setting of several seeds counts with its mean over them, as on the front.

Where the scales were listed in the space (a grid), every scale is a column. Where they were solved from budgets they
are all different: then the columns are bins of equal ratio, and a second map has the budgets as columns, within which
sizes are equal and dimensions can be compared. Where many trials were stopped early, a further map compares all of them
at the last epoch that they share.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from analysis.stats import study_strata
from analysis.utils import method_label
from sweeps.records import VAL_ERROR, Role, Status, StudyRecord, TrialRecord, group_by_point, mean_error, point_key

MAX_COLUMNS = 20  # listed scales that are columns of their own; more are put in bins
BINS = 8  # solved scales are all different: more than so many are put in bins
MAX_STOPPED_SHARE = 0.25  # a larger share of a method's settings leaves too few cells with an error at the end
FAILED_STATUSES = frozenset({Status.DIVERGED, Status.OUT_OF_MEMORY, Status.FAILED})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a map.

    Attributes:
        error: the lowest in percent; None where no trial was trained to its end.
        seeds: of the setting with the lowest error.
        completed: how many settings were trained to their end.
        stopped: how many trials were stopped early.
        failed: how many trials failed.
    """

    error: float | None
    seeds: int = 0
    completed: int = 0
    stopped: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Cells by row and column.

    Attributes:
        method: in words.
        column_quantity: "rank scale", "rank scale (bins)" or "budget".
        rows: dimensions, smallest first.
        columns: labels.
        cells: by row and column; None where nothing was tried.
        epoch: after which errors are taken; None for the end.
    """

    method: str
    column_quantity: str
    rows: tuple[int, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    epoch: int | None = None

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of seeds that an error is a mean of; (0, 0) without errors."""
        seeds = [cell.seeds for row in self.cells for cell in row if cell and cell.seeds]
        return (min(seeds), max(seeds)) if seeds else (0, 0)


@dataclass(frozen=True)
class _Entry:
    method: str
    dims: int
    scale: float | None
    stratum: str
    trial: TrialRecord


def heat_maps(study: StudyRecord) -> list[HeatMap]:
    """Return the maps of each method that was searched in dimensions and scale.

    Args:
        study: the records.

    Returns:
        One to three maps a method.
    """
    entries = [entry for trial in study.trials.values() for entry in _entries(trial)]
    maps = []
    for method in sorted({entry.method for entry in entries}):
        of_method = [entry for entry in entries if entry.method == method]
        scales = sorted({entry.scale for entry in of_method if entry.scale is not None})
        if len({entry.dims for entry in of_method}) < 2 or not scales:
            continue  # nothing to compare
        solved = _is_solved(study)
        maps.append(_by_scale(method, of_method, scales, BINS if solved else MAX_COLUMNS))
        shared = _shared_epoch(of_method)
        if shared is not None:
            maps.append(_by_scale(method, of_method, scales, BINS if solved else MAX_COLUMNS, shared))
        if solved:
            maps += _by_budget(study, method, of_method)
    return maps


def _shared_epoch(entries: Sequence[_Entry]) -> int | None:
    """The last epoch that all stopped and completed trials reached; None where few were stopped."""
    stopped = [entry.trial for entry in entries if entry.trial.status is Status.STOPPED]
    if len(stopped) <= MAX_STOPPED_SHARE * len(entries):
        return None
    return min(trial.last_epoch for trial in stopped) or None


def _is_solved(study: StudyRecord) -> bool:
    """Whether sizes came from budgets that were searched."""
    return any(name.startswith("budget.") for trial in study.trials.values() for name in trial.parameters)


def _entries(trial: TrialRecord) -> list[_Entry]:
    """The trial's own setting and those of further rows of a grid that it represents, having the same ranks."""
    method = trial.specification.get("method", {})
    if trial.role is Role.REFERENCE or trial.status is Status.INFEASIBLE or trial.broken or not method.get("dims"):
        return []
    pairs = {(int(method["dims"]), method.get("rank_scale"))}
    for alias in trial.aliases:
        dims, scale = alias.get("method.dims"), alias.get("method.rank_scale")
        if dims is not None and scale is not None:
            pairs.add((int(dims), scale))
    return [_Entry(trial.method, dims, scale, trial.stratum, trial) for dims, scale in sorted(pairs, key=str)]


def _by_scale(
    method: str, entries: Sequence[_Entry], scales: Sequence[float], max_columns: int, epoch: int | None = None
) -> HeatMap:
    if len(scales) <= max_columns:
        labels = [f"{scale:.3g}" for scale in scales]
        places = {scale: index for index, scale in enumerate(scales)}
        columns = [places[entry.scale] if entry.scale is not None else None for entry in entries]
        return _map(method, "rank scale", labels, entries, columns, epoch)
    low, ratio = scales[0], (scales[-1] / scales[0]) ** (1 / BINS)
    edges = [low * ratio**index for index in range(BINS + 1)]
    labels = [f"{a:.2g} to {b:.2g}" for a, b in pairwise(edges)]
    columns = [None if entry.scale is None else _bin(entry.scale, low, ratio) for entry in entries]
    return _map(method, "rank scale (bins)", labels, entries, columns, epoch)


def _bin(scale: float, low: float, ratio: float) -> int:
    return min(BINS - 1, int(math.log(scale / low) / math.log(ratio) + 1e-9)) if ratio > 1 else 0


def _by_budget(study: StudyRecord, method: str, entries: Sequence[_Entry]) -> list[HeatMap]:
    labels = [stratum.label for stratum in study_strata(study)] or sorted({entry.stratum for entry in entries})
    if len(labels) < 2:
        return []
    columns = [labels.index(entry.stratum) if entry.stratum in labels else None for entry in entries]
    short = [label.replace("params", "").replace("<=", "≤").strip() for label in labels]
    return [_map(method, "budget", short, entries, columns)]


def _map(
    method: str, column_quantity: str, labels: Sequence[str], entries: Sequence[_Entry], columns: Sequence[int | None],
    epoch: int | None = None,
) -> HeatMap:  # fmt: skip
    rows = sorted({entry.dims for entry in entries})
    trials: dict[tuple[int, int], list[TrialRecord]] = defaultdict(list)
    for entry, column in zip(entries, columns, strict=True):
        if column is not None:
            trials[entry.dims, column].append(entry.trial)
    cells = [
        tuple(_cell(trials[dims, column], epoch) if (dims, column) in trials else None for column in range(len(labels)))
        for dims in rows
    ]
    return HeatMap(
        method=method_label(method), column_quantity=column_quantity, rows=tuple(rows), columns=tuple(labels),
        cells=tuple(cells), epoch=epoch,
    )  # fmt: skip


def _cell(trials: Sequence[TrialRecord], epoch: int | None) -> Cell:
    points = group_by_point(trials)
    errors = [(mean_error(seeds), len(seeds)) for seeds in points] if epoch is None else _errors_at(trials, epoch)
    error, seeds = min(errors, default=(None, 0))
    return Cell(
        error=error,
        seeds=seeds,
        completed=len(points),
        stopped=sum(trial.status is Status.STOPPED for trial in trials),
        failed=sum(trial.status in FAILED_STATUSES for trial in trials),
    )


def _errors_at(trials: Sequence[TrialRecord], epoch: int) -> list[tuple[float, int]]:
    """Mean error after an epoch of each setting that reached it, and over how many seeds."""
    errors_by_point: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        if VAL_ERROR in trial.epochs.get(epoch, {}):
            errors_by_point[point_key(trial)].append(trial.epochs[epoch][VAL_ERROR])
    return [(fmean(errors), len(errors)) for errors in errors_by_point.values()]
