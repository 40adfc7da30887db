"""The tables of a report as typed records: full values for CSV, texts for readers.

Errors are in percent, differences in points of error, times in seconds unless a heading says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.findings import (
    Answer,
    Failure,
    FailureGroup,
    HeatMap,
    LearningCurve,
    PointComparison,
    PublishedResult,
    ReproduceCommand,
    SettingTestError,
    StudyCost,
    TimeProfile,
)
from analysis.stats import (
    Estimate,
    ExpectedBest,
    FrontPoint,
    Importance,
    PairedEffect,
    RepeatedSetting,
    Stratum,
    expected_bests,
)
from analysis.utils import (
    format_duration,
    format_error_interval,
    format_mean_and_deviation,
    format_percent,
    format_points,
    format_points_interval,
    method_label,
    status_label,
    write_csv,
)
from lowrank.utils import format_count
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table.

    Attributes:
        name: of the CSV file, without its ending.
        columns: headings of the CSV file.
        rows: full values, for the CSV file.
        texts: the rows for readers; fewer or none where the table is for CSV.
        headings: for readers; the `columns` where empty.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    texts: tuple[tuple[str, ...], ...] = ()
    headings: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write NAME.csv, all of it or nothing.

        Args:
            folder: to write into.

        Returns:
            The path of the file.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        path = folder / f"{self.name}.csv"
        write_csv(path, self.columns, self.rows)
        return path


BALANCED_SHOWN = 0.5  # points


def format_point_error(point: FrontPoint) -> str:
    """Return a point's validation error, or mean and deviation: `5.23 % ± 0.1 (n = 3)`.

    The balanced error follows where it differs by BALANCED_SHOWN points or more, as for classes of unequal size.
    """
    if point.val_error is None:
        return ""
    text = format_percent(point.val_error)
    if point.seeds > 1 and point.mean_error is not None and point.spread is not None:
        text = format_mean_and_deviation(point.mean_error, point.spread, point.seeds)
    if (
        point.balanced_error is None
        or abs(point.balanced_error - (point.mean_error or point.val_error)) < BALANCED_SHOWN
    ):
        return text
    return f"{text}, balanced {format_percent(point.balanced_error)}"


def budget_table(answers: Sequence[Answer], points: Sequence[FrontPoint]) -> ReportTable:
    """Return the best of each budget, against separable and the next best method.

    Args:
        answers: one a budget.
        points: of the study, among which they were chosen.

    Returns:
        The table, one row a budget.
    """
    rows, texts = [], []
    for answer in answers:
        best = answer.best
        if best is None:
            continue
        low, high = answer.interval or (None, None)
        separable = _comparison(answer, "separable reference")
        rival = _comparison(answer, "next best method")
        methods = [best.method, *([rival.other.method] if rival else [])]
        expected = expected_bests([point for point in points if answer.stratum.holds(point)], methods)
        ours, theirs = expected[best.method], expected.get(rival.other.method) if rival else None
        rows.append((
            answer.stratum.label, answer.stratum.params, best.trial_id, best.name, best.params, best.mult_adds,
            best.error, answer.corrected, low, high, best.seeds, best.spread, separable.gap if separable else None,
            rival.other.name if rival else None, rival.gap if rival else None,
            answer.level.size if rival and rival.level and answer.level else None,
            best.epochs, best.total_epochs, ours.settings, theirs.settings if theirs else None, ours.n, ours.error,
            theirs.error if theirs else None,
        ))  # fmt: skip
        limit = f"≤ {answer.stratum.params:,}" if answer.stratum.params else answer.stratum.label
        interval = ""
        if low is not None and high is not None:
            interval = f"{format_percent(answer.corrected or 0.0)} ({low:.1f} to {high:.1f})"
        texts.append((
            limit, best.name, f"{best.params:,}", format_epochs(best), format_point_error(best), interval,
            _gap(separable),
            f"{rival.other.form}: {_gap(rival)}{', at equal size' * bool(rival.level)}" if rival else "",
            f"{_expected(ours)}, against {format_percent(theirs.error)}, {theirs.settings} tried" if theirs else "",
        ))  # fmt: skip
    columns = (
        "budget", "budget_params", "trial_id", "setting", "params", "mult_adds", "val_error", "val_error_corrected",
        "val_error_low_95", "val_error_high_95", "seeds", "standard_deviation", "points_to_separable",
        "next_best_method", "points_to_next_best", "compared_at", "epochs", "total_epochs", "settings_of_method",
        "settings_of_next_best", "n", "expected_best_of_n", "next_best_expected_best_of_n",
    )  # fmt: skip
    headings = (
        "budget",
        "best",
        "parameters",
        "epochs",
        "error",
        "corrected for the choice (95 %)",
        "against separable",
        "next method",
        "expected best of n",
    )
    return ReportTable(name="best", columns=columns, rows=tuple(rows), texts=tuple(texts), headings=headings)


def _expected(best: ExpectedBest) -> str:
    return f"{format_percent(best.error)} (n = {best.n} of {best.settings} tried)"


def equal_size_table(answers: Sequence[Answer], points: Sequence[FrontPoint]) -> ReportTable:
    """Return the methods of each budget at one size, where their own sizes differ.

    Args:
        answers: one a budget.
        points: of the study, among which they were chosen.

    Returns:
        The table, one row a budget and method; the expected best of n is that of settings within the budget.
    """
    rows, texts = [], []
    for answer in answers:
        level = answer.level
        fitting = [point for point in points if answer.stratum.holds(point)]
        expected_by_method = expected_bests(fitting, [method.method for method in level.methods] if level else [])
        for method in level.methods if level else ():
            assert level is not None
            expected = expected_by_method.get(method.method)
            epochs = " and ".join(dict.fromkeys(format_epochs(point) for point in (method.below, method.above)))
            ends = (method.below.size(level.measure), method.above.size(level.measure))
            seeds = len(method.by_seed)
            estimate = method.estimate if seeds > 1 else None
            low, high = (estimate.low, estimate.high) if estimate else (None, None)
            rows.append((
                answer.stratum.label, level.measure, level.size, method.method, method.error, low, high, seeds,
                method.between, *ends, method.below.total_epochs, method.above.total_epochs,
                *((expected.settings, expected.n, expected.error) if expected else (0, None, None)),
            ))  # fmt: skip
            limit = f"≤ {answer.stratum.params:,}" if answer.stratum.params else answer.stratum.label
            source = f"interpolated, {ends[0]:,} to {ends[1]:,}" if method.between else "measured"
            error = format_error_interval(estimate) if estimate else format_percent(method.error)
            texts.append((
                limit, f"{level.size:,}", method_label(method.method), epochs, error, source, str(seeds),
                _expected(expected) if expected else "",
            ))  # fmt: skip
    columns = (
        "budget", "measure", "size", "method", "val_error", "val_error_low_95", "val_error_high_95", "seeds",
        "interpolated", "size_below", "size_above", "total_epochs_below", "total_epochs_above", "settings", "n",
        "expected_best_of_n",
    )  # fmt: skip
    headings = ("budget", "size", "method", "epochs", "error", "how", "seeds", "expected best of n")
    return ReportTable(name="equal_size", columns=columns, rows=tuple(rows), texts=tuple(texts), headings=headings)


def _comparison(answer: Answer, label: str) -> PointComparison | None:
    return next((comparison for comparison in answer.comparisons if comparison.label.startswith(label)), None)


def _gap(comparison: PointComparison | None) -> str:
    if comparison is None:
        return ""
    verdict = {True: ", within noise", False: ", beyond noise", None: ""}[comparison.within_noise]
    return f"{format_points(comparison.gap)}{verdict}"


def points_table(name: str, points: Sequence[FrontPoint], fronts: dict[str, set[str]]) -> ReportTable:
    """Return trials with all that a front point holds, and on which fronts they lie.

    Args:
        name: of the table.
        points: of the trials.
        fronts: name of a front -> ids of its trials.

    Returns:
        The table, one row a trial.
    """
    names = [field.name for field in fields(FrontPoint)]
    rows = tuple(
        (*(getattr(point, field) for field in names), *(point.trial_id in ids for ids in fronts.values()))
        for point in points
    )
    columns = (*names, *(f"on_front_{front}" for front in fronts))
    headings = ("setting", "parameters", "of separable", "mult-adds", "error", "epochs", "front", "trial")
    texts = tuple(_point_texts(point, fronts) for point in points)
    return ReportTable(name=name, columns=columns, rows=rows, texts=texts, headings=headings)


def _point_texts(point: FrontPoint, fronts: dict[str, set[str]]) -> tuple[str, ...]:
    marks = [
        {"params": "parameters"}.get(name, name.replace("_", "-"))
        for name, ids in fronts.items()
        if point.trial_id in ids
    ]
    return (
        point.name, f"{point.params:,}", "" if point.ratio is None else f"{100 * point.ratio:.1f} %",
        "" if point.mult_adds is None else format_count(point.mult_adds), format_point_error(point),
        format_epochs(point),
        ", ".join(marks) or str(point.role), point.trial_id,
    )  # fmt: skip


def format_epochs(point: FrontPoint) -> str:
    """Return the epochs trained; of a start from trained weights those of the dense network too: `3 (23 in all)`."""
    if not point.epochs or point.start == "scratch" or point.total_epochs == point.epochs:
        return str(point.epochs or "")
    return f"{point.epochs} ({'?' if point.total_epochs is None else point.total_epochs} in all)"


def table_of_test_errors(errors: Sequence[SettingTestError], published: Sequence[PublishedResult]) -> ReportTable:
    """Return the study's test errors, then printed ones of the same data and split."""
    rows: tuple[tuple[Any, ...], ...] = tuple(
        (
            e.point.trial_id,
            e.point.name,
            e.point.params,
            e.error,
            e.spread,
            e.seeds,
            e.point.error,
            "measured, has left the front" if e.left_front else "measured",
        )
        for e in errors
    )
    by_size = sorted(published, key=lambda result: result.params)
    rows += tuple((None, method_label(p.method), p.params, p.error, None, None, None, "printed") for p in by_size)
    texts = tuple(
        (name, f"{params:,.0f}", format_mean_and_deviation(error, spread, seeds or 1),
         "" if validation is None else format_percent(validation), source, trial or "")
        for trial, name, params, error, spread, seeds, validation, source in rows
    )  # fmt: skip
    columns = ("trial_id", "setting", "params", "test_error", "standard_deviation", "seeds", "val_error", "source")
    headings = ("setting", "parameters", "test error", "validation error", "from", "trial")
    return ReportTable(name="test_errors", columns=columns, rows=rows, texts=texts, headings=headings)


def curves_table(curves: Sequence[LearningCurve]) -> ReportTable:
    """Return the learning curves, one row an epoch; for CSV only."""
    rows = tuple((c.trial_id, c.label, epoch, error) for c in curves for epoch, error in c.points)
    return ReportTable(name="learning_curves", columns=("trial_id", "setting", "epoch", "val_error"), rows=rows)


def initial_table(points: Sequence[FrontPoint]) -> ReportTable:
    """Return trials that started from trained weights, with their errors before and after training."""
    rows = tuple(
        (p.trial_id, p.name, p.params, p.initial_error, p.val_error, p.epochs, p.total_epochs)
        for p in points if p.initial_error is not None
    )  # fmt: skip
    texts = tuple(
        (name, f"{params:,}", format_percent(before), "" if after is None else format_percent(after), str(epochs),
         "" if total is None else str(total), trial_id)
        for trial_id, name, params, before, after, epochs, total in rows
    )  # fmt: skip
    columns = ("trial_id", "setting", "params", "initial_error", "val_error", "epochs", "total_epochs")
    headings = ("setting", "parameters", "before training", "after", "epochs", "in all", "trial")
    return ReportTable(name="before_training", columns=columns, rows=rows, texts=texts, headings=headings)


def budgets_table(strata: Sequence[Stratum], points: Sequence[FrontPoint]) -> ReportTable:
    """Return the lowest errors of each method within each budget, with a teacher and without.

    Args:
        strata: the budgets.
        points: of all trials; those that did not start from trained weights are left out.

    Returns:
        One row for each method, teacher and budget; in words one row for each method and teacher.
    """
    started = [point for point in points if point.eligible and point.initial_error is not None]
    kinds = sorted({(point.method, point.teacher) for point in started})
    rows, texts = [], []
    for method, teacher in kinds:
        cells = []
        for stratum in strata:
            candidates = [p for p in started if (p.method, p.teacher, p.stratum) == (method, teacher, stratum.label)]
            if not candidates:
                cells.append("")
                continue
            best = min(candidates, key=lambda point: (point.error, point.params))
            before = min(point.initial_error or 0.0 for point in candidates)
            rows.append((stratum.label, method, teacher, best.trial_id, best.params, best.error, before))
            cells.append(f"{format_percent(best.error)} ({format_percent(before)})")
        texts.append((method_label(method), f"taught by {teacher}" if teacher else "alone", *cells))
    columns = ("budget", "method", "teacher", "trial_id", "params", "val_error", "initial_error")
    headings = ("method", "teacher", *(stratum.label for stratum in strata))
    return ReportTable(name="by_budget", columns=columns, rows=tuple(rows), texts=tuple(texts), headings=headings)


def layers_table(study: StudyRecord, shown: Sequence[FrontPoint]) -> ReportTable:
    """Return how far each fitted layer was from the trained one before any training; in words those of `shown`."""
    rows = tuple(
        (trial.trial_id, layer["name"], layer.get("method", "dense"), " x ".join(map(str, layer.get("ranks", []))),
         layer["weight_error"], layer["output_error"])
        for trial in study.trials.values() for layer in trial.initial.get("layers", [])
    )  # fmt: skip
    sizes = {point.trial_id: f"{method_label(point.method)}, {point.params:,}" for point in shown}
    texts = tuple(
        (sizes[trial_id], name, method_label(method), ranks, f"{weight:.2f}", f"{output:.2f}")
        for trial_id, name, method, ranks, weight, output in rows if trial_id in sizes
    )  # fmt: skip
    columns = ("trial_id", "layer", "method", "ranks", "weight_error", "output_error")
    headings = ("network", "layer", "method", "ranks", "weight error", "output error")
    return ReportTable(name="layers", columns=columns, rows=rows, texts=texts, headings=headings)


def heat_map_table(name: str, heat: HeatMap) -> ReportTable:
    """Return a heat map, one row a cell; for CSV only."""
    rows = tuple(
        (heat.method, dims, column, cell.error, cell.seeds, cell.completed, cell.stopped, cell.failed)
        for dims, line in zip(heat.rows, heat.cells, strict=True)
        for column, cell in zip(heat.columns, line, strict=True)
        if cell is not None
    )
    columns = (
        "method", "dims", heat.column_quantity, "lowest_val_error", "seeds", "completed", "stopped_early", "failed",
    )  # fmt: skip
    return ReportTable(name=name, columns=columns, rows=rows)


def importance_table(importances: Sequence[Importance]) -> ReportTable:
    """Return shares by evaluator and field."""
    rows = tuple((i.evaluator, i.within_budgets, i.trials, i.seeds, *share) for i in importances for share in i.shares)
    texts = tuple(
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
    return ReportTable(name="importance", columns=columns, rows=rows, texts=texts, headings=headings)


def paired_effects_table(effects: Sequence[PairedEffect]) -> ReportTable:
    """Return paired differences, one row a pair of values."""
    rows = tuple(
        (e.factor, e.base, e.other, e.pairing, e.estimate.mean, e.estimate.low, e.estimate.high, "t-interval, 95 %",
         e.estimate.count, e.unit, e.pairs, e.seeds)
        for e in effects
    )  # fmt: skip
    texts = tuple(
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
    return ReportTable(name="ablation", columns=columns, rows=rows, texts=texts, headings=headings)


def repeats_table(repeats: Sequence[RepeatedSetting]) -> ReportTable:
    """Return settings that were trained with several seeds."""
    rows = tuple(
        (r.point.setting, r.point.name, r.point.params, len(r.seeds), *_values(r.val_error), *_values(r.test_error),
         *_values(r.gap), None if r.gap is None else r.same_images)
        for r in repeats
    )  # fmt: skip
    texts = tuple(
        (r.point.name, f"{r.point.params:,}", ", ".join([str(len(r.seeds)), *[r.point.lost] * bool(r.point.lost)]),
         format_error_interval(r.val_error),
         format_error_interval(r.test_error), format_points_interval(r.gap))
        for r in repeats
    )  # fmt: skip
    columns = (
        "setting_id", "setting", "params", "seeds", *(f"val_error_{part}" for part in _PARTS),
        *(f"test_error_{part}" for part in _PARTS), *(f"points_to_separable_{part}" for part in _PARTS),
        "same_images",
    )  # fmt: skip
    headings = ("setting", "parameters", "seeds", "error", "test error", "against separable, paired by seed")
    return ReportTable(name="repeats", columns=columns, rows=rows, texts=texts, headings=headings)


_PARTS = ("mean", "low_95", "high_95")


def _values(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)


def failures_table(failures: Sequence[Failure]) -> ReportTable:
    """Return every failure; for CSV."""
    names = tuple(field.name for field in fields(Failure))
    rows = tuple(tuple(getattr(failure, name) for name in names) for failure in failures)
    return ReportTable(name="failures", columns=names, rows=rows)


def failure_groups_table(groups: Sequence[FailureGroup]) -> ReportTable:
    """Return failures by kind, method and stratum."""
    rows = tuple((g.count, g.kind, g.method, g.stratum, g.reason) for g in groups)
    columns = ("trials", "kind", "method", "stratum", "commonest_reason")
    headings = ("trials", "what", "method", "where", "why (the commonest)")
    texts = tuple(tuple(str(value) for value in row) for row in rows)
    return ReportTable(name="failure_groups", columns=columns, rows=rows, texts=texts, headings=headings)


def cost_table(cost: StudyCost) -> ReportTable:
    """Return the time of training by outcome."""
    rows = tuple((str(o.status), o.trials, o.epochs, o.seconds) for o in cost.outcomes)
    texts = tuple(
        (status_label(o.status), f"{o.trials:,}", f"{o.epochs:,}", format_duration(o.seconds), _share(o.seconds, cost))
        for o in cost.outcomes
    )
    headings = ("ended", "trials", "epochs", "training time", "share")
    columns = ("status", "trials", "epochs", "train_seconds")
    return ReportTable(name="cost", columns=columns, rows=rows, texts=texts, headings=headings)


def profile_table(profile: TimeProfile) -> ReportTable:
    """Return where the time of all slots went, in the order of a study's course."""
    total = profile.slot_seconds or 1.0
    rows = tuple((part, seconds, seconds / total) for part, seconds in profile.seconds.items())
    texts = tuple((part, format_duration(seconds), f"{100 * share:.1f} %") for part, seconds, share in rows)
    columns, headings = ("part", "slot_seconds", "share"), ("spent on", "slots' time", "share")
    return ReportTable(name="profile", columns=columns, rows=rows, texts=texts, headings=headings)


def _share(seconds: float, cost: StudyCost) -> str:
    return f"{100 * seconds / cost.train_seconds:.0f} %" if cost.train_seconds else ""


def reproduce_table(commands: Sequence[ReproduceCommand]) -> ReportTable:
    """Return the command of each point; for CSV."""
    rows = tuple((c.trial_id, c.name, c.command, c.why_not) for c in commands)
    return ReportTable(name="reproduce", columns=("trial_id", "setting", "command", "why_not"), rows=rows)
