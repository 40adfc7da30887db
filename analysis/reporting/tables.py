"""The tables of a report as typed records: full values for CSV, words for readers.

Errors are in percent, differences in points of error, times in seconds unless a heading says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.findings.answer import Answer, PointComparison
from analysis.findings.cost import StudyCost
from analysis.findings.curves import LearningCurve
from analysis.findings.failures import Failure, FailureGroup
from analysis.findings.heatmap import HeatMap
from analysis.findings.published_results import PublishedResult
from analysis.findings.reproduce import ReproduceCommand
from analysis.findings.test_errors import SettingTestError
from analysis.findings.time_profile import TimeProfile
from analysis.stats.front import FrontPoint
from analysis.stats.importance import Importance
from analysis.stats.intervals import Estimate
from analysis.stats.paired_effects import PairedEffect
from analysis.stats.seeds import RepeatedSetting
from analysis.utils.csv_file import write_csv
from analysis.utils.formatting import (
    format_duration,
    format_error_interval,
    format_mean_and_deviation,
    format_percent,
    format_points,
    format_points_interval,
    method_label,
    status_label,
)
from lowrank.utils.text import format_count


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table: `columns` are headings, `rows` hold full values, `words` the same for readers (all text)."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    words: tuple[tuple[str, ...], ...] = ()
    headings: tuple[str, ...] = ()  # for readers; the columns where empty

    def write(self, folder: Path) -> Path:
        """Write NAME.csv, whole or not at all."""
        path = folder / f"{self.name}.csv"
        write_csv(path, self.columns, self.rows)
        return path


def error_words(point: FrontPoint) -> str:
    """A point's validation error: of one seed as it is, of several `5.23 % ± 0.12 (n = 3)`, mean and deviation."""
    if point.val_error is None:
        return ""
    if point.seeds == 1 or point.mean_error is None or point.spread is None:
        return format_percent(point.val_error)
    return format_mean_and_deviation(point.mean_error, point.spread, point.seeds)


def best_sheet(answers: Sequence[Answer]) -> Sheet:
    """What is best within each budget, and how far it is from the separable network and the next best method."""
    rows, words = [], []
    for answer in answers:
        best = answer.best
        if best is None:
            continue
        low, high = answer.interval or (None, None)
        whole = _comparison(answer, "separable reference")
        other = _comparison(answer, "next best method")
        rows.append((
            answer.stratum.label, answer.stratum.params, best.trial_id, best.name, best.params, best.mult_adds,
            best.error, low, high, best.seeds, best.spread, whole.gap if whole else None,
            other.other.name if other else None, other.gap if other else None,
            answer.level.size if other and other.level and answer.level else None,
        ))  # fmt: skip
        limit = f"≤ {answer.stratum.params:,}" if answer.stratum.params else answer.stratum.label
        interval = f"{low:.1f} to {high:.1f}" if low is not None and high is not None else ""
        words.append((
            limit, best.name, f"{best.params:,}", error_words(best), interval, _gap(whole),
            f"{other.other.form}: {_gap(other)}{', at equal size' * bool(other.level)}" if other else "",
        ))  # fmt: skip
    columns = (
        "budget", "budget_params", "trial_id", "setting", "params", "mult_adds", "val_error", "val_error_low_95",
        "val_error_high_95", "seeds", "standard_deviation", "points_to_separable", "next_best_method",
        "points_to_next_best", "compared_at",
    )  # fmt: skip
    headings = ("budget", "best", "parameters", "error", "95 % (Wilson)", "against separable", "next method")
    return Sheet(name="best", columns=columns, rows=tuple(rows), words=tuple(words), headings=headings)


def level_sheet(answers: Sequence[Answer]) -> Sheet:
    """The methods at one size in each budget where their own sizes differ, each along its own front."""
    rows, words = [], []
    for answer in answers:
        level = answer.level
        for each in level.methods if level else ():
            assert level is not None
            ends = (each.below.size(level.measure), each.above.size(level.measure))
            over = each.estimate if len(each.by_seed) > 1 else None
            low, high = (over.low, over.high) if over else (None, None)
            rows.append((
                answer.stratum.label, level.measure, level.size, each.method, each.error, low, high, len(each.by_seed),
                each.between, *ends,
            ))  # fmt: skip
            limit = f"≤ {answer.stratum.params:,}" if answer.stratum.params else answer.stratum.label
            measured = f"interpolated, {ends[0]:,} to {ends[1]:,}" if each.between else "measured"
            error = format_error_interval(over) if over else format_percent(each.error)
            words.append((limit, f"{level.size:,}", method_label(each.method), error, measured, str(len(each.by_seed))))
    columns = (
        "budget", "measure", "size", "method", "val_error", "val_error_low_95", "val_error_high_95", "seeds",
        "interpolated", "size_below", "size_above",
    )  # fmt: skip
    headings = ("budget", "size", "method", "error", "how", "seeds")
    return Sheet(name="equal_size", columns=columns, rows=tuple(rows), words=tuple(words), headings=headings)


def _comparison(answer: Answer, label: str) -> PointComparison | None:
    return next((each for each in answer.comparisons if each.label.startswith(label)), None)


def _gap(comparison: PointComparison | None) -> str:
    if comparison is None:
        return ""
    verdict = {True: ", within noise", False: ", beyond noise", None: ""}[comparison.within_noise]
    return f"{format_points(comparison.gap)}{verdict}"


def points_sheet(name: str, points: Sequence[FrontPoint], fronts: dict[str, set[str]]) -> Sheet:
    """Trials with all that a front point holds, and on which of the `fronts` (by name: trial ids) each lies."""
    names = [field.name for field in fields(FrontPoint)]
    rows = tuple(
        (*(getattr(point, each) for each in names), *(point.trial_id in ids for ids in fronts.values()))
        for point in points
    )
    columns = (*names, *(f"on_front_{front}" for front in fronts))
    headings = ("setting", "parameters", "of separable", "mult-adds", "error", "epochs", "front", "trial")
    words = tuple(_point_words(point, fronts) for point in points)
    return Sheet(name=name, columns=columns, rows=rows, words=words, headings=headings)


def _point_words(point: FrontPoint, fronts: dict[str, set[str]]) -> tuple[str, ...]:
    marks = [
        {"params": "parameters"}.get(name, name.replace("_", "-"))
        for name, ids in fronts.items()
        if point.trial_id in ids
    ]
    return (
        point.name, f"{point.params:,}", "" if point.ratio is None else f"{100 * point.ratio:.1f} %",
        "" if point.mult_adds is None else format_count(point.mult_adds), error_words(point),
        str(point.epochs or ""),
        ", ".join(marks) or str(point.role), point.trial_id,
    )  # fmt: skip


def on_test_sheet(found: Sequence[SettingTestError], printed: Sequence[PublishedResult]) -> Sheet:
    """Test errors of the study, then the printed ones of the same data and split."""
    rows: tuple[tuple[Any, ...], ...] = tuple(
        (
            each.point.trial_id,
            each.point.name,
            each.point.params,
            each.error,
            each.spread,
            each.seeds,
            each.point.error,
            "measured",
        )
        for each in found
    )
    others = sorted(printed, key=lambda each: each.params)
    rows += tuple((None, method_label(p.method), p.params, p.error, None, None, None, "printed") for p in others)
    words = tuple(
        (name, f"{params:,.0f}", format_mean_and_deviation(error, spread, seeds or 1),
         "" if validation is None else format_percent(validation), source, trial or "")
        for trial, name, params, error, spread, seeds, validation, source in rows
    )  # fmt: skip
    columns = ("trial_id", "setting", "params", "test_error", "standard_deviation", "seeds", "val_error", "source")
    headings = ("setting", "parameters", "test error", "validation error", "from", "trial")
    return Sheet(name="test_errors", columns=columns, rows=rows, words=words, headings=headings)


def curves_sheet(curves: Sequence[LearningCurve]) -> Sheet:
    """The learning curves, one row an epoch; for CSV only."""
    rows = tuple((c.trial_id, c.label, epoch, error) for c in curves for epoch, error in c.points)
    return Sheet(name="learning_curves", columns=("trial_id", "setting", "epoch", "val_error"), rows=rows)


def heat_sheet(name: str, heat: HeatMap) -> Sheet:
    """A heat map, one row a cell; for CSV only."""
    rows = tuple(
        (heat.method, dims, column, cell.error, cell.seeds, cell.completed, cell.stopped, cell.failed)
        for dims, line in zip(heat.rows, heat.cells, strict=True)
        for column, cell in zip(heat.columns, line, strict=True)
        if cell is not None
    )
    columns = ("method", "dims", heat.columns_are, "lowest_val_error", "seeds", "completed", "stopped_early", "failed")
    return Sheet(name=name, columns=columns, rows=rows)


def importance_sheet(found: Sequence[Importance]) -> Sheet:
    """Shares by evaluator and field."""
    rows = tuple(
        (each.evaluator, each.within_budgets, each.trials, each.seeds, name, share)
        for each in found
        for name, share in each.shares
    )
    words = tuple(
        (
            name,
            f"{100 * share:.1f} %",
            evaluator,
            "within budgets" if within else "over all sizes",
            str(trials),
            str(seeds),
        )
        for evaluator, within, trials, seeds, name, share in rows
    )
    columns = ("evaluator", "within_budgets", "settings", "seeds_at_most", "field", "share")
    headings = ("field", "share", "evaluator", "taken", "settings", "seeds at most")
    return Sheet(name="importance", columns=columns, rows=rows, words=words, headings=headings)


def ablation_sheet(effects: Sequence[PairedEffect]) -> Sheet:
    """Paired differences, one row a pair of values."""
    rows = tuple(
        (e.factor, e.base, e.other, e.pairing, e.estimate.mean, e.estimate.low, e.estimate.high, "t-interval, 95 %",
         e.estimate.count, e.unit, e.pairs, e.seeds)
        for e in effects
    )  # fmt: skip
    words = tuple(
        (e.factor, f"{e.other} instead of {e.base}", format_points_interval(e.estimate), e.verdict(), e.pairing,
         f"{e.estimate.count} {e.unit if e.estimate.count != 1 else e.unit.removesuffix('s')}", str(e.pairs),
         str(e.seeds))
        for e in effects
    )  # fmt: skip
    columns = (
        "field", "base", "other", "pairing", "difference", "low_95", "high_95", "interval", "units", "unit", "pairs",
        "seeds",
    )  # fmt: skip
    headings = ("field", "change", "points (95 % t-interval)", "verdict", "pairing", "interval over", "pairs", "seeds")
    return Sheet(name="ablation", columns=columns, rows=rows, words=words, headings=headings)


def repeats_sheet(found: Sequence[RepeatedSetting]) -> Sheet:
    """Settings that were trained with several seeds."""
    rows = tuple(
        (r.point.setting, r.point.name, r.point.params, len(r.seeds), *_values(r.val_error), *_values(r.test_error),
         *_values(r.gap))
        for r in found
    )  # fmt: skip
    words = tuple(
        (r.point.name, f"{r.point.params:,}", ", ".join([str(len(r.seeds)), *[r.point.lost] * bool(r.point.lost)]),
         format_error_interval(r.val_error),
         format_error_interval(r.test_error), format_points_interval(r.gap))
        for r in found
    )  # fmt: skip
    columns = (
        "setting_id", "setting", "params", "seeds", *(f"val_error_{part}" for part in _PARTS),
        *(f"test_error_{part}" for part in _PARTS), *(f"points_to_separable_{part}" for part in _PARTS),
    )  # fmt: skip
    headings = ("setting", "parameters", "seeds", "error", "test error", "against separable, paired by seed")
    return Sheet(name="repeats", columns=columns, rows=rows, words=words, headings=headings)


_PARTS = ("mean", "low_95", "high_95")


def _values(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)


def failures_sheet(found: Sequence[Failure]) -> Sheet:
    """Every failure; for CSV."""
    names = [field.name for field in fields(Failure)]
    return Sheet(name="failures", columns=tuple(names), rows=tuple(tuple(getattr(f, n) for n in names) for f in found))


def failure_groups_sheet(found: Sequence[FailureGroup]) -> Sheet:
    """Failures by kind, method and stratum."""
    rows = tuple((g.count, g.kind, g.method, g.stratum, g.reason) for g in found)
    columns = ("trials", "kind", "method", "stratum", "commonest_reason")
    headings = ("trials", "what", "method", "where", "why (the commonest)")
    words = tuple(tuple(str(value) for value in row) for row in rows)
    return Sheet(name="failure_groups", columns=columns, rows=rows, words=words, headings=headings)


def cost_sheet(cost: StudyCost) -> Sheet:
    """Hours of training by outcome."""
    rows = tuple((str(o.status), o.trials, o.epochs, o.seconds) for o in cost.outcomes)
    words = tuple(
        (status_label(o.status), f"{o.trials:,}", f"{o.epochs:,}", format_duration(o.seconds), _share(o.seconds, cost))
        for o in cost.outcomes
    )
    headings = ("ended", "trials", "epochs", "training time", "share")
    columns = ("status", "trials", "epochs", "train_seconds")
    return Sheet(name="cost", columns=columns, rows=rows, words=words, headings=headings)


def profile_sheet(found: TimeProfile) -> Sheet:
    """Where the time of all slots went, in the order of a study's course."""
    whole = found.slot_seconds or 1.0
    rows = tuple((part, seconds, seconds / whole) for part, seconds in found.seconds.items())
    words = tuple((part, format_duration(seconds), f"{100 * share:.1f} %") for part, seconds, share in rows)
    columns, headings = ("part", "slot_seconds", "share"), ("spent on", "slots' time", "share")
    return Sheet(name="profile", columns=columns, rows=rows, words=words, headings=headings)


def _share(seconds: float, cost: StudyCost) -> str:
    return f"{100 * seconds / cost.train_seconds:.0f} %" if cost.train_seconds else ""


def recipes_sheet(found: Sequence[ReproduceCommand]) -> Sheet:
    """The command of each point; for CSV."""
    rows = tuple((r.trial_id, r.name, r.command, r.why_not) for r in found)
    return Sheet(name="reproduce", columns=("trial_id", "setting", "command", "why_not"), rows=rows)
