"""Dimensions against rank: the lowest validation error in each cell, one map a method.

A setting of several seeds counts by its mean over them, as on the front.

Where the scales were given (a grid), every scale is a column. Where they were solved from budgets they are all
different: then the columns are bins of equal ratio, and a second map has the budgets as columns, within which sizes
are equal and dimensions can be compared. Where many trials were stopped early a further map holds all of them against
each other at the last epoch that they share.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from analysis.stats.front import study_strata
from analysis.utils.formatting import method_label
from sweeps.records.events import Role, Status
from sweeps.records.fronts import group_by_point, mean_error, point_key
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import VAL_ERROR

MAX_COLUMNS = 20  # given scales that are columns of their own; more are put in bins
BINS = 8  # solved scales are all different: more than so many are put in bins
MAX_STOPPED_SHARE = 0.25  # a larger share of a method's settings leaves too few cells with an error at the end
FAILED_STATUSES = frozenset({Status.DIVERGED, Status.OUT_OF_MEMORY, Status.FAILED})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The lowest error in percent (None where nothing trained to its end), over so many seeds, and how trials ended."""

    error: float | None
    seeds: int = 0  # of the setting of the lowest error
    completed: int = 0  # settings
    stopped: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Cells by row (dimensions, smallest first) and column; None where nothing was tried."""

    method: str
    columns_are: str  # "rank scale", "rank scale (bins)" or "budget"
    rows: tuple[int, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    epoch: int | None = None  # after which errors are taken; None: at the end

    @property
    def seeds(self) -> tuple[int, int]:
        """The fewest and the most seeds that an error of the map is a mean of; (0, 0) where there is none."""
        found = [cell.seeds for row in self.cells for cell in row if cell and cell.seeds]
        return (min(found), max(found)) if found else (0, 0)


@dataclass(frozen=True)
class _Entry:
    method: str
    dims: int
    scale: float | None
    stratum: str
    trial: TrialRecord


def heat_maps(study: StudyRecord) -> list[HeatMap]:
    """A map for each method that has dimensions and a scale; empty where none was searched in both."""
    entries = [entry for trial in study.trials.values() for entry in _entries(trial)]
    found = []
    for method in sorted({entry.method for entry in entries}):
        own = [entry for entry in entries if entry.method == method]
        scales = sorted({entry.scale for entry in own if entry.scale is not None})
        if len({entry.dims for entry in own}) < 2 or not scales:
            continue  # nothing to hold against each other
        solved = _is_solved(study)
        found.append(_by_scale(method, own, scales, BINS if solved else MAX_COLUMNS))
        shared = _shared_epoch(own)
        if shared is not None:
            found.append(_by_scale(method, own, scales, BINS if solved else MAX_COLUMNS, shared))
        if solved:
            found += _by_budget(study, method, own)
    return found


def _shared_epoch(entries: Sequence[_Entry]) -> int | None:
    """The last epoch that all came to which were stopped or trained to their end; None where few were stopped."""
    stopped = [entry.trial for entry in entries if entry.trial.status is Status.STOPPED]
    if len(stopped) <= MAX_STOPPED_SHARE * len(entries):
        return None
    return min(trial.last_epoch for trial in stopped) or None


def _is_solved(study: StudyRecord) -> bool:
    """Whether sizes came from budgets that were searched."""
    return any(name.startswith("budget.") for trial in study.trials.values() for name in trial.parameters)


def _entries(trial: TrialRecord) -> list[_Entry]:
    """The trial's own setting and the further ones that it stands for: rows of a grid with the same ranks."""
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
    method: str, entries: Sequence[_Entry], scales: Sequence[float], most: int, epoch: int | None = None
) -> HeatMap:
    if len(scales) <= most:
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
    method: str, columns_are: str, labels: Sequence[str], entries: Sequence[_Entry], columns: Sequence[int | None],
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
        method=method_label(method), columns_are=columns_are, rows=tuple(rows), columns=tuple(labels),
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
    """Mean error after an epoch of each setting that came to it, and over how many seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        if VAL_ERROR in trial.epochs.get(epoch, {}):
            found[point_key(trial)].append(trial.epochs[epoch][VAL_ERROR])
    return [(fmean(errors), len(errors)) for errors in found.values()]
