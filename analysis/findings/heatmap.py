"""Heat maps of each method's lowest validation error, by number of tensor dimensions and rank.

The error of a setting is its mean over seeds, as on the front.

If the space lists the rank scales (a grid), every scale is a column. If they were solved from budgets, all of them
differ: the columns are then bins of equal ratio. A second map has the budgets as columns: networks of one column have
about the same size, so that numbers of dimensions can be compared. If many trials were stopped early, another map
compares all of them at the last epoch that all have reached.
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

MAX_COLUMNS = 20  # more listed scales than this are grouped into bins
BINS = 8  # number of bins; more solved scales than this are grouped too, since hardly two of them are equal
MAX_STOPPED_SHARE = 0.25  # if more trials of a method were stopped, too few cells have an error at the end
FAILED_STATUSES = frozenset({Status.DIVERGED, Status.OUT_OF_MEMORY, Status.FAILED})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a map.

    Attributes:
        error: the lowest validation error in percent; None where no trial was trained to its end (or to the epoch).
        seeds: number of seeds of the setting with the lowest error; 0 without an error.
        completed: how many settings were trained to their end (or to the epoch).
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
    """The heat map of one method.

    Attributes:
        method: the method's label.
        column_quantity: what differs between columns: "rank scale", "rank scale (bins)" or "budget".
        rows: numbers of tensor dimensions, smallest first.
        columns: labels of the columns.
        cells: by row and column; None where nothing was tried.
        epoch: the epoch whose errors the cells show; None for the end of training.
    """

    method: str
    column_quantity: str
    rows: tuple[int, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    epoch: int | None = None

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of seeds among cells with an error; (0, 0) if there are none."""
        seeds = [cell.seeds for row in self.cells for cell in row if cell and cell.seeds]
        return (min(seeds), max(seeds)) if seeds else (0, 0)


@dataclass(frozen=True)
class _Entry:
    """A trial at one pair of dimensions and rank scale; see `_trial_entries`."""

    method: str
    dims: int
    scale: float | None
    stratum: str
    trial: TrialRecord


def heat_maps(study: StudyRecord) -> list[HeatMap]:
    """Return the maps of each method whose dimensions and rank scales were searched.

    Args:
        study: the records.

    Returns:
        One to three maps a method: by scale, by scale at a shared epoch, by budget.
    """
    entries = [entry for trial in study.trials.values() for entry in _trial_entries(trial)]
    maps = []
    for method in sorted({entry.method for entry in entries}):
        method_entries = [entry for entry in entries if entry.method == method]
        scales = sorted({entry.scale for entry in method_entries if entry.scale is not None})
        if len({entry.dims for entry in method_entries}) < 2 or not scales:
            continue  # nothing to compare
        budgets_searched = _are_budgets_searched(study)
        max_columns = BINS if budgets_searched else MAX_COLUMNS
        maps.append(_map_by_scale(method, method_entries, scales, max_columns))
        shared_epoch = _shared_epoch(method_entries)
        if shared_epoch is not None:
            maps.append(_map_by_scale(method, method_entries, scales, max_columns, shared_epoch))
        if budgets_searched:
            maps += _maps_by_budget(study, method, method_entries)
    return maps


def _shared_epoch(entries: Sequence[_Entry]) -> int | None:
    """Return the last epoch that every stopped trial reached; None if few were stopped, or one in its first epoch."""
    stopped = [entry.trial for entry in entries if entry.trial.status is Status.STOPPED]
    if len(stopped) <= MAX_STOPPED_SHARE * len(entries):
        return None
    return min(trial.last_epoch for trial in stopped) or None


def _are_budgets_searched(study: StudyRecord) -> bool:
    """Return whether a budget is among the searched parameters; rank scales are then solved from it."""
    return any(name.startswith("budget.") for trial in study.trials.values() for name in trial.parameters)


def _trial_entries(trial: TrialRecord) -> list[_Entry]:
    """Return an entry for the trial's setting, and one for each other grid setting that builds the same network."""
    method = trial.specification.method if trial.specification else None
    if trial.role is Role.REFERENCE or trial.status is Status.INFEASIBLE or trial.broken:
        return []
    if method is None or not method.dims:
        return []
    pairs = {(method.dims, method.rank_scale)}
    for alias in trial.aliases:
        dims, scale = alias.get("method.dims"), alias.get("method.rank_scale")
        if isinstance(dims, int | float) and isinstance(scale, int | float):
            pairs.add((int(dims), scale))
    return [_Entry(trial.method, dims, scale, trial.stratum, trial) for dims, scale in sorted(pairs, key=str)]


def _map_by_scale(
    method: str, entries: Sequence[_Entry], scales: Sequence[float], max_columns: int, epoch: int | None = None
) -> HeatMap:
    if len(scales) <= max_columns:
        labels = [f"{scale:.3g}" for scale in scales]
        column_by_scale = {scale: index for index, scale in enumerate(scales)}
        columns = [column_by_scale[entry.scale] if entry.scale is not None else None for entry in entries]
        return _build_map(method, "rank scale", labels, entries, columns, epoch)
    low, ratio = scales[0], (scales[-1] / scales[0]) ** (1 / BINS)
    edges = [low * ratio**index for index in range(BINS + 1)]
    labels = [f"{a:.2g} to {b:.2g}" for a, b in pairwise(edges)]
    columns = [None if entry.scale is None else _bin(entry.scale, low, ratio) for entry in entries]
    return _build_map(method, "rank scale (bins)", labels, entries, columns, epoch)


def _bin(scale: float, low: float, ratio: float) -> int:
    """Return the index of a scale's bin; the first begins at `low`, and `ratio` is between the edges of each."""
    return min(BINS - 1, int(math.log(scale / low) / math.log(ratio) + 1e-9)) if ratio > 1 else 0


def _maps_by_budget(study: StudyRecord, method: str, entries: Sequence[_Entry]) -> list[HeatMap]:
    """Return one map with a column for each budget; none if there is only one budget."""
    labels = [stratum.label for stratum in study_strata(study)] or sorted({entry.stratum for entry in entries})
    if len(labels) < 2:
        return []
    columns = [labels.index(entry.stratum) if entry.stratum in labels else None for entry in entries]
    short_labels = [label.replace("params", "").replace("<=", "≤").strip() for label in labels]
    return [_build_map(method, "budget", short_labels, entries, columns)]


def _build_map(
    method: str, column_quantity: str, labels: Sequence[str], entries: Sequence[_Entry], columns: Sequence[int | None],
    epoch: int | None = None,
) -> HeatMap:  # fmt: skip
    """Build a map; `columns` has the column of each entry, None for entries outside all columns."""
    rows = sorted({entry.dims for entry in entries})
    trials: dict[tuple[int, int], list[TrialRecord]] = defaultdict(list)
    for entry, column in zip(entries, columns, strict=True):
        if column is not None:
            trials[entry.dims, column].append(entry.trial)
    cells = [
        tuple(
            _build_cell(trials[dims, column], epoch) if (dims, column) in trials else None
            for column in range(len(labels))
        )
        for dims in rows
    ]
    return HeatMap(
        method=method_label(method), column_quantity=column_quantity, rows=tuple(rows), columns=tuple(labels),
        cells=tuple(cells), epoch=epoch,
    )  # fmt: skip


def _build_cell(trials: Sequence[TrialRecord], epoch: int | None) -> Cell:
    """Summarise the trials of one cell, with their errors after `epoch` or, if it is None, at the end."""
    if epoch is None:
        errors = [(mean_error(seeds), len(seeds)) for seeds in group_by_point(trials)]
    else:
        errors = _errors_at(trials, epoch)
    error, seeds = min(errors, default=(None, 0))
    return Cell(
        error=error,
        seeds=seeds,
        completed=len(errors),
        stopped=sum(trial.status is Status.STOPPED for trial in trials),
        failed=sum(trial.status in FAILED_STATUSES for trial in trials),
    )


def _errors_at(trials: Sequence[TrialRecord], epoch: int) -> list[tuple[float, int]]:
    """Return, for each setting that reached the epoch, its mean error over seeds and the number of seeds."""
    errors_by_point: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        if VAL_ERROR in trial.epochs.get(epoch, {}):
            errors_by_point[point_key(trial)].append(trial.epochs[epoch][VAL_ERROR])
    return [(fmean(errors), len(errors)) for errors in errors_by_point.values()]
