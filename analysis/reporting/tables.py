"""The tables of a report as typed records: full values for CSV, texts for readers.

Errors are in percent, differences in points of error, times in seconds unless a heading says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from analysis.findings import (
    Answer,
    Cell,
    Failure,
    FailureGroup,
    HeatMap,
    LearningCurve,
    OutcomeCost,
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
    MethodAtSize,
    PairedEffect,
    RepeatedSetting,
    ShareBase,
    SizeLevel,
    Stratum,
    expected_bests,
    taught_by,
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
from sweeps.records import FULL_ERROR, LAYER_METRIC_PREFIXES, StudyRecord, TrialRecord


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


Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its names, values and words in one place.

    Attributes:
        name: heading in the CSV file; "" where readers alone have the column.
        value: for the CSV file.
        heading: for readers; "" where the CSV file alone has the column.
        words: for readers; None for the value as it is.
    """

    name: str
    value: Callable[[Row], Any] | None = None
    heading: str = ""
    words: Callable[[Row], str] | None = None

    def text(self, row: Row) -> str:
        """Return the cell for readers."""
        if self.words is not None:
            return self.words(row)
        assert self.value is not None
        return str(self.value(row))


def make_table(
    name: str, columns: Sequence[Column[Row]], rows: Iterable[Row], shown: Iterable[Row] | None = None,
    *, leave_out_empty: bool = False,
) -> ReportTable:  # fmt: skip
    """Make a table from a list of columns.

    Args:
        name: of the CSV file, without its ending.
        columns: in their order, for the CSV file and for readers.
        rows: of the CSV file.
        shown: the rows for readers; None for the same.
        leave_out_empty: whether readers see no column in which nothing stands.

    Returns:
        The table.
    """
    rows = tuple(rows)
    shown = rows if shown is None else tuple(shown)
    stored = [(column.name, column.value) for column in columns if column.name and column.value is not None]
    texts = [(column.heading, [column.text(row) for row in shown]) for column in columns if column.heading]
    texts = [(heading, cells) for heading, cells in texts if any(cells) or not leave_out_empty]
    return ReportTable(
        name=name, columns=tuple(heading for heading, _ in stored),
        rows=tuple(tuple(value(row) for _, value in stored) for row in rows),
        texts=tuple(zip(*(cells for _, cells in texts), strict=True)), headings=tuple(heading for heading, _ in texts),
    )  # fmt: skip


def format_point_error(point: FrontPoint) -> str:
    """Return a point's validation error, or mean and deviation: `5.23 % ± 0.1 (n = 3)`.

    The balanced error follows where it differs, as for classes of unequal size.
    """
    if point.val_error is None:
        return ""
    text = format_percent(point.val_error)
    if point.seeds > 1 and point.mean_error is not None and point.spread is not None:
        text = format_mean_and_deviation(point.mean_error, point.spread, point.seeds)
    return text if point.balanced_apart is None else f"{text}, balanced {format_percent(point.balanced_apart)}"


@dataclass(frozen=True, kw_only=True)
class _BudgetRow:
    """The best of a budget with what it is compared with."""

    answer: Answer
    best: FrontPoint
    separable: PointComparison | None
    rival: PointComparison | None
    expected: ExpectedBest
    rival_expected: ExpectedBest | None

    @property
    def limit(self) -> str:
        return _limit(self.answer)

    @property
    def interval(self) -> str:
        if self.answer.interval is None:
            return ""
        low, high = self.answer.interval
        return f"{format_percent(self.answer.corrected or 0.0)} ({low:.1f} to {high:.1f})"

    @property
    def rival_words(self) -> str:
        if self.rival is None:
            return ""
        return f"{self.rival.other.form}: {_gap(self.rival)}{', at equal size' * bool(self.rival.level)}"

    @property
    def expected_words(self) -> str:
        theirs = self.rival_expected
        if theirs is None:
            return ""
        return f"{_expected(self.expected)}, against {format_percent(theirs.error)}, {theirs.settings} tried"


def _limit(answer: Answer) -> str:
    return f"≤ {answer.stratum.params:,}" if answer.stratum.params else answer.stratum.label


def _optional(item: Any, name: str) -> Any:
    """An attribute; None of nothing."""
    return None if item is None else getattr(item, name)


_BUDGET_COLUMNS: tuple[Column[_BudgetRow], ...] = (
    Column("budget", lambda row: row.answer.stratum.label, "budget", lambda row: row.limit),
    Column("budget_params", lambda row: row.answer.stratum.params),
    Column("trial_id", lambda row: row.best.trial_id),
    Column("setting", lambda row: row.best.name, "best"),
    Column("params", lambda row: row.best.params, "parameters", lambda row: f"{row.best.params:,}"),
    Column("", None, "epochs", lambda row: format_epochs(row.best)),
    Column("mult_adds", lambda row: row.best.mult_adds),
    Column("val_error", lambda row: row.best.error, "error", lambda row: format_point_error(row.best)),
    Column("balanced_error", lambda row: row.best.balanced_error),
    Column("val_error_corrected", lambda row: row.answer.corrected, "corrected for the choice (95 %)",
           lambda row: row.interval),
    Column("val_error_low_95", lambda row: row.answer.interval and row.answer.interval[0]),
    Column("val_error_high_95", lambda row: row.answer.interval and row.answer.interval[1]),
    Column("seeds", lambda row: row.best.seeds),
    Column("standard_deviation", lambda row: row.best.spread),
    Column("points_to_separable", lambda row: _optional(row.separable, "gap"), "against separable",
           lambda row: _gap(row.separable)),
    Column("next_best_method", lambda row: row.rival and row.rival.other.name, "next method",
           lambda row: row.rival_words),
    Column("points_to_next_best", lambda row: _optional(row.rival, "gap")),
    Column("points_to_separable_seeds", lambda row: _optional(row.separable, "seeds")),
    Column("points_to_next_best_seeds", lambda row: _optional(row.rival, "seeds")),
    Column("compared_at", lambda row: row.answer.level.size if row.rival and row.rival.level and row.answer.level
           else None),
    Column("epochs", lambda row: row.best.epochs),
    Column("total_epochs", lambda row: row.best.total_epochs),
    Column("settings_of_method", lambda row: row.expected.settings),
    Column("settings_of_next_best", lambda row: _optional(row.rival_expected, "settings")),
    Column("n", lambda row: row.expected.n),
    Column("expected_best_of_n", lambda row: row.expected.error, "expected best of n", lambda row: row.expected_words),
    Column("next_best_expected_best_of_n", lambda row: _optional(row.rival_expected, "error")),
)  # fmt: skip


def budget_table(answers: Sequence[Answer], points: Sequence[FrontPoint]) -> ReportTable:
    """Return the best of each budget, against separable and the next best method.

    Args:
        answers: one a budget.
        points: of the study, among which they were chosen.

    Returns:
        The table, one row a budget.
    """
    rows = []
    for answer in answers:
        if answer.best is None:
            continue
        rival = _comparison(answer, "next best method")
        methods = [answer.best.method, *([rival.other.method] if rival else [])]
        expected = expected_bests([point for point in points if answer.stratum.holds(point)], methods)
        rows.append(_BudgetRow(
            answer=answer, best=answer.best, separable=_comparison(answer, "separable reference"), rival=rival,
            expected=expected[answer.best.method],
            rival_expected=expected.get(rival.other.method) if rival else None,
        ))  # fmt: skip
    return make_table("best", _BUDGET_COLUMNS, rows, leave_out_empty=True)


def _expected(best: ExpectedBest) -> str:
    return f"{format_percent(best.error)} (n = {best.n} of {best.settings} tried)"


@dataclass(frozen=True, kw_only=True)
class _LevelRow:
    """A method at the size of a budget."""

    answer: Answer
    level: SizeLevel
    method: MethodAtSize
    expected: ExpectedBest | None

    @property
    def estimate(self) -> Estimate | None:
        return self.method.estimate if len(self.method.by_seed) > 1 else None

    @property
    def ends(self) -> tuple[int | None, int | None]:
        return self.method.below.size(self.level.measure), self.method.above.size(self.level.measure)

    @property
    def epochs(self) -> str:
        return " and ".join(dict.fromkeys(format_epochs(point) for point in (self.method.below, self.method.above)))

    @property
    def source(self) -> str:
        return f"interpolated, {self.ends[0]:,} to {self.ends[1]:,}" if self.method.between else "measured"

    @property
    def error(self) -> str:
        return format_error_interval(self.estimate) if self.estimate else format_percent(self.method.error)


_LEVEL_COLUMNS: tuple[Column[_LevelRow], ...] = (
    Column("budget", lambda row: row.answer.stratum.label, "budget", lambda row: _limit(row.answer)),
    Column("measure", lambda row: row.level.measure),
    Column("size", lambda row: row.level.size, "size", lambda row: f"{row.level.size:,}"),
    Column("method", lambda row: row.method.method, "method", lambda row: method_label(row.method.method)),
    Column("", None, "epochs", lambda row: row.epochs),
    Column("val_error", lambda row: row.method.error, "error", lambda row: row.error),
    Column("", None, "how", lambda row: row.source),
    Column("val_error_low_95", lambda row: _optional(row.estimate, "low")),
    Column("val_error_high_95", lambda row: _optional(row.estimate, "high")),
    Column("seeds", lambda row: len(row.method.by_seed), "seeds"),
    Column("interpolated", lambda row: row.method.between),
    Column("size_below", lambda row: row.ends[0]),
    Column("size_above", lambda row: row.ends[1]),
    Column("total_epochs_below", lambda row: row.method.below.total_epochs),
    Column("total_epochs_above", lambda row: row.method.above.total_epochs),
    Column("settings", lambda row: row.expected.settings if row.expected else 0),
    Column("n", lambda row: _optional(row.expected, "n")),
    Column("expected_best_of_n", lambda row: _optional(row.expected, "error"), "expected best of n",
           lambda row: _expected(row.expected) if row.expected else ""),
)  # fmt: skip


def equal_size_table(answers: Sequence[Answer], points: Sequence[FrontPoint]) -> ReportTable:
    """Return the methods of each budget at one size, where their own sizes differ.

    Args:
        answers: one a budget.
        points: of the study, among which they were chosen.

    Returns:
        The table, one row a budget and method; the expected best of n is that of settings within the budget.
    """
    rows = []
    for answer in answers:
        if answer.level is None:
            continue
        fitting = [point for point in points if answer.stratum.holds(point)]
        expected = expected_bests(fitting, [method.method for method in answer.level.methods])
        rows += [
            _LevelRow(answer=answer, level=answer.level, method=method, expected=expected.get(method.method))
            for method in answer.level.methods
        ]
    return make_table("equal_size", _LEVEL_COLUMNS, rows)


def _comparison(answer: Answer, label: str) -> PointComparison | None:
    return next((comparison for comparison in answer.comparisons if comparison.label.startswith(label)), None)


def _gap(comparison: PointComparison | None) -> str:
    if comparison is None:
        return ""
    verdict = {True: ", within noise", False: ", beyond noise", None: ""}[comparison.within_noise]
    seeds = f" {comparison.shared_seeds}" if comparison.shared_seeds else ""
    return f"{format_points(comparison.gap)}{seeds}{verdict}"


def points_table(
    name: str, points: Sequence[FrontPoint], fronts: dict[str, set[str]], base: ShareBase
) -> ReportTable:  # fmt: skip
    """Return trials with all that a front point holds, and on which fronts they lie.

    Args:
        name: of the table.
        points: of the trials.
        fronts: name of a front -> ids of its trials.
        base: the network of whose parameters sizes are shares.

    Returns:
        The table, one row a trial.
    """
    columns: list[Column[FrontPoint]] = [Column(field.name, _attribute(field.name)) for field in fields(FrontPoint)]
    columns += [Column(f"on_front_{front}", _belongs(ids)) for front, ids in fronts.items()]
    columns += [
        Column("", None, "setting", lambda point: point.name),
        Column("", None, "parameters", lambda point: f"{point.params:,}"),
        Column("", None, f"of {base}",
               lambda point: "" if (share := point.share_of(base)) is None else f"{100 * share:.1f} %"),
        Column("", None, "mult-adds",
               lambda point: "" if point.mult_adds is None else format_count(point.mult_adds)),
        Column("", None, "error", format_point_error),
        Column("", None, "epochs", format_epochs),
        Column("", None, "front", lambda point: _front_words(point, fronts)),
        Column("", None, "trial", lambda point: point.trial_id),
    ]  # fmt: skip
    return make_table(name, columns, points)


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(row, name)


def _belongs(ids: set[str]) -> Callable[[FrontPoint], bool]:
    return lambda point: point.trial_id in ids


def _front_words(point: FrontPoint, fronts: dict[str, set[str]]) -> str:
    marks = [
        {"params": "parameters"}.get(name, name.replace("_", "-"))
        for name, ids in fronts.items()
        if point.trial_id in ids
    ]
    return ", ".join(marks) or str(point.role)


def format_epochs(point: FrontPoint) -> str:
    """Return the epochs trained; of a start from trained weights those of the dense network too: `3 (23 in all)`."""
    if not point.epochs or point.start == "scratch" or point.total_epochs == point.epochs:
        return str(point.epochs or "")
    return f"{point.epochs} ({'?' if point.total_epochs is None else point.total_epochs} in all)"


@dataclass(frozen=True, kw_only=True)
class _TestRow:
    """A test error that was measured, or printed elsewhere."""

    setting: str
    params: float
    error: float
    source: str
    trial_id: str | None = None
    spread: float | None = None
    seeds: int | None = None
    validation: float | None = None


_TEST_COLUMNS: tuple[Column[_TestRow], ...] = (
    Column("trial_id", lambda row: row.trial_id),
    Column("setting", lambda row: row.setting, "setting"),
    Column("params", lambda row: row.params, "parameters", lambda row: f"{row.params:,.0f}"),
    Column("test_error", lambda row: row.error, "test error",
           lambda row: format_mean_and_deviation(row.error, row.spread, row.seeds or 1)),
    Column("standard_deviation", lambda row: row.spread),
    Column("seeds", lambda row: row.seeds),
    Column("val_error", lambda row: row.validation, "validation error",
           lambda row: "" if row.validation is None else format_percent(row.validation)),
    Column("source", lambda row: row.source, "from"),
    Column("", None, "trial", lambda row: row.trial_id or ""),
)  # fmt: skip


def table_of_test_errors(errors: Sequence[SettingTestError], published: Sequence[PublishedResult]) -> ReportTable:
    """Return the study's test errors, then printed ones of the same data and split."""
    rows = [
        _TestRow(
            trial_id=entry.point.trial_id, setting=entry.point.name, params=entry.point.params, error=entry.error,
            spread=entry.spread, seeds=entry.seeds, validation=entry.point.error,
            source="measured, has left the front" if entry.left_front else "measured",
        )
        for entry in errors
    ]  # fmt: skip
    rows += [
        _TestRow(setting=method_label(result.method), params=result.params, error=result.error, source="printed")
        for result in sorted(published, key=lambda result: result.params)
    ]
    return make_table("test_errors", _TEST_COLUMNS, rows)


_CURVE_COLUMNS: tuple[Column[tuple[LearningCurve, int, float]], ...] = (
    Column("trial_id", lambda row: row[0].trial_id),
    Column("setting", lambda row: row[0].label),
    Column("epoch", lambda row: row[1]),
    Column("val_error", lambda row: row[2]),
)


def curves_table(curves: Sequence[LearningCurve]) -> ReportTable:
    """Return the learning curves, one row an epoch; for CSV only."""
    rows = [(curve, epoch, error) for curve in curves for epoch, error in curve.points]
    return make_table("learning_curves", _CURVE_COLUMNS, rows)


_INITIAL_COLUMNS: tuple[Column[FrontPoint], ...] = (
    Column("trial_id", lambda point: point.trial_id),
    Column("setting", lambda point: point.name, "setting"),
    Column("params", lambda point: point.params, "parameters", lambda point: f"{point.params:,}"),
    Column("initial_error", lambda point: point.initial_error, "before training",
           lambda point: format_percent(point.initial_error or 0.0)),
    Column("val_error", lambda point: point.val_error, "after",
           lambda point: "" if point.val_error is None else format_percent(point.val_error)),
    Column("epochs", lambda point: point.epochs, "epochs"),
    Column("total_epochs", lambda point: point.total_epochs, "in all",
           lambda point: "" if point.total_epochs is None else str(point.total_epochs)),
    Column("", None, "trial", lambda point: point.trial_id),
)  # fmt: skip


def initial_table(points: Sequence[FrontPoint]) -> ReportTable:
    """Return trials that started from trained weights, with their errors before and after training."""
    return make_table("before_training", _INITIAL_COLUMNS, [p for p in points if p.initial_error is not None])


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
        texts.append((method_label(method), taught_by(teacher) if teacher else "alone", *cells))
    columns = ("budget", "method", "teacher", "trial_id", "params", "val_error", "initial_error")
    headings = ("method", "teacher", *(stratum.label for stratum in strata))
    return ReportTable(name="by_budget", columns=columns, rows=tuple(rows), texts=tuple(texts), headings=headings)


def layers_table(study: StudyRecord, shown: Sequence[FrontPoint]) -> ReportTable:
    """Return how far each fitted layer was from the trained one before any training; in words those of `shown`."""
    layers: list[tuple[str, Mapping[str, Any]]] = [
        (trial.trial_id, layer) for trial in study.trials.values() for layer in trial.initial.get("layers", [])
    ]
    names = {point.trial_id: f"{method_label(point.method)}, {point.params:,}" for point in shown}
    columns: tuple[Column[tuple[str, Mapping[str, Any]]], ...] = (
        Column("trial_id", lambda row: row[0], "network", lambda row: names[row[0]]),
        Column("layer", lambda row: row[1]["name"], "layer"),
        Column("method", lambda row: _layer_method(row[1]), "method", lambda row: method_label(_layer_method(row[1]))),
        Column("ranks", lambda row: " x ".join(map(str, row[1].get("ranks", []))), "ranks"),
        Column("weight_error", lambda row: row[1]["weight_error"], "weight error",
               lambda row: f"{row[1]['weight_error']:.2f}"),
        Column("output_error", lambda row: row[1]["output_error"], "output error",
               lambda row: f"{row[1]['output_error']:.2f}"),
    )  # fmt: skip
    return make_table("layers", columns, layers, [row for row in layers if row[0] in names])


def _layer_method(layer: Mapping[str, Any]) -> str:
    return str(layer.get("method", "dense"))


def heat_map_table(name: str, heat: HeatMap) -> ReportTable:
    """Return a heat map, one row a cell; for CSV only."""
    cells = [
        (dims, column, cell)
        for dims, line in zip(heat.rows, heat.cells, strict=True)
        for column, cell in zip(heat.columns, line, strict=True)
        if cell is not None
    ]
    columns: tuple[Column[tuple[int, str, Cell]], ...] = (
        Column("method", lambda _: heat.method),
        Column("dims", lambda row: row[0]),
        Column(heat.column_quantity, lambda row: row[1]),
        Column("lowest_val_error", lambda row: row[2].error),
        Column("seeds", lambda row: row[2].seeds),
        Column("completed", lambda row: row[2].completed),
        Column("stopped_early", lambda row: row[2].stopped),
        Column("failed", lambda row: row[2].failed),
    )
    return make_table(name, columns, cells)


_IMPORTANCE_COLUMNS: tuple[Column[tuple[Importance, str, float]], ...] = (
    Column("", None, "field", lambda row: row[1]),
    Column("", None, "share", lambda row: f"{100 * row[2]:.1f} %"),
    Column("evaluator", lambda row: row[0].evaluator, "evaluator"),
    Column("within_budgets", lambda row: row[0].within_budgets, "taken",
           lambda row: "within budgets" if row[0].within_budgets else "over all sizes"),
    Column("settings", lambda row: row[0].trials, "settings"),
    Column("seeds_at_most", lambda row: row[0].seeds, "seeds at most"),
    Column("field", lambda row: row[1]),
    Column("share", lambda row: row[2]),
)  # fmt: skip


def importance_table(importances: Sequence[Importance]) -> ReportTable:
    """Return shares by evaluator and field."""
    rows = [(importance, *share) for importance in importances for share in importance.shares]
    return make_table("importance", _IMPORTANCE_COLUMNS, rows)


def _units(effect: PairedEffect) -> str:
    count = effect.estimate.count
    return f"{count} {effect.unit if count != 1 else effect.unit.removesuffix('s')}"


_EFFECT_COLUMNS: tuple[Column[PairedEffect], ...] = (
    Column("field", lambda effect: effect.factor, "field"),
    Column("base", lambda effect: effect.base),
    Column("other", lambda effect: effect.other),
    Column("", None, "change", lambda effect: f"{effect.other} instead of {effect.base}"),
    Column("", None, "points (95 % t-interval)", lambda effect: format_points_interval(effect.estimate)),
    Column("", None, "verdict", lambda effect: effect.verdict()),
    Column("pairing", lambda effect: effect.pairing, "pairing"),
    Column("difference", lambda effect: effect.estimate.mean),
    Column("low_95", lambda effect: effect.estimate.low),
    Column("high_95", lambda effect: effect.estimate.high),
    Column("interval", lambda _: "t-interval, 95 %"),
    Column("units", lambda effect: effect.estimate.count, "interval over", _units),
    Column("unit", lambda effect: effect.unit),
    Column("pairs", lambda effect: effect.pairs, "pairs"),
    Column("seeds", lambda effect: effect.seeds, "seeds"),
)


def paired_effects_table(effects: Sequence[PairedEffect]) -> ReportTable:
    """Return paired differences, one row a pair of values."""
    return make_table("ablation", _EFFECT_COLUMNS, effects)


def _estimate_columns(
    prefix: str, estimate: Callable[[RepeatedSetting], Estimate | None], heading: str,
    words: Callable[[RepeatedSetting], str],
) -> list[Column[RepeatedSetting]]:  # fmt: skip
    """Mean and interval of an estimate; in words one column."""
    return [
        Column(f"{prefix}_mean", lambda row: _optional(estimate(row), "mean"), heading, words),
        Column(f"{prefix}_low_95", lambda row: _optional(estimate(row), "low")),
        Column(f"{prefix}_high_95", lambda row: _optional(estimate(row), "high")),
    ]


_REPEAT_COLUMNS: tuple[Column[RepeatedSetting], ...] = (
    Column("setting_id", lambda row: row.point.setting),
    Column("setting", lambda row: row.point.name, "setting"),
    Column("params", lambda row: row.point.params, "parameters", lambda row: f"{row.point.params:,}"),
    Column("seeds", lambda row: len(row.seeds), "seeds",
           lambda row: ", ".join(filter(None, (str(len(row.seeds)), row.point.lost)))),
    *_estimate_columns("val_error", lambda row: row.val_error, "error",
                       lambda row: format_error_interval(row.val_error)),
    *_estimate_columns("test_error", lambda row: row.test_error, "test error",
                       lambda row: format_error_interval(row.test_error)),
    *_estimate_columns("points_to_separable", lambda row: row.gap, "against separable, paired by seed",
                       lambda row: format_points_interval(row.gap)),
    Column("same_images", lambda row: None if row.gap is None else row.same_images),
)  # fmt: skip


def repeats_table(repeats: Sequence[RepeatedSetting]) -> ReportTable:
    """Return settings that were trained with several seeds."""
    return make_table("repeats", _REPEAT_COLUMNS, repeats)


def failures_table(failures: Sequence[Failure]) -> ReportTable:
    """Return every failure; for CSV."""
    columns: list[Column[Failure]] = [Column(field.name, _attribute(field.name)) for field in fields(Failure)]
    return make_table("failures", columns, failures)


_FAILURE_COLUMNS: tuple[Column[FailureGroup], ...] = (
    Column("trials", lambda group: group.count, "trials"),
    Column("kind", lambda group: group.kind, "what"),
    Column("method", lambda group: group.method, "method"),
    Column("stratum", lambda group: group.stratum, "where"),
    Column("commonest_reason", lambda group: group.reason, "why (the commonest)"),
)


def failure_groups_table(groups: Sequence[FailureGroup]) -> ReportTable:
    """Return failures by kind, method and stratum."""
    return make_table("failure_groups", _FAILURE_COLUMNS, groups)


def cost_table(cost: StudyCost) -> ReportTable:
    """Return the time of training by outcome."""
    columns: tuple[Column[OutcomeCost], ...] = (
        Column("status", lambda row: str(row.status), "ended", lambda row: status_label(row.status)),
        Column("trials", lambda row: row.trials, "trials", lambda row: f"{row.trials:,}"),
        Column("epochs", lambda row: row.epochs, "epochs", lambda row: f"{row.epochs:,}"),
        Column("train_seconds", lambda row: row.seconds, "training time", lambda row: format_duration(row.seconds)),
        Column("", None, "share", lambda row: _share(row.seconds, cost)),
    )
    return make_table("cost", columns, cost.outcomes)


def profile_table(profile: TimeProfile) -> ReportTable:
    """Return where the time of all slots went, in the order of a study's course."""
    total = profile.slot_seconds or 1.0
    columns: tuple[Column[tuple[str, float]], ...] = (
        Column("part", lambda row: row[0], "spent on"),
        Column("slot_seconds", lambda row: row[1], "slots' time", lambda row: format_duration(row[1])),
        Column("share", lambda row: row[1] / total, "share", lambda row: f"{100 * row[1] / total:.1f} %"),
    )
    return make_table("profile", columns, profile.seconds.items())


def _share(seconds: float, cost: StudyCost) -> str:
    return f"{100 * seconds / cost.train_seconds:.0f} %" if cost.train_seconds else ""


_REPRODUCE_COLUMNS: tuple[Column[ReproduceCommand], ...] = (
    Column("trial_id", lambda row: row.trial_id),
    Column("setting", lambda row: row.name),
    Column("command", lambda row: row.command),
    Column("why_not", lambda row: row.why_not),
)


def reproduce_table(commands: Sequence[ReproduceCommand]) -> ReportTable:
    """Return the command of each point; for CSV."""
    return make_table("reproduce", _REPRODUCE_COLUMNS, commands)


# Bayesian compression

KL, ALIVE, SIGNAL_TO_NOISE = LAYER_METRIC_PREFIXES
SHOWN_EPOCHS = 8  # on the page; the table has all
_EPOCH_METRICS = ("loss_cross_entropy", "loss_kl", "kl_weight", "sparsity", "compression", "val_error")


def removed_table(study: StudyRecord) -> ReportTable:
    """Return what is left of each trial's network: sizes, errors before and after the removal, and the threshold.

    Args:
        study: the records.

    Returns:
        One row a trial that has lost groups.
    """
    rows = tuple(
        (trial.trial_id, _prior(trial), trial.counts["params"], trial.counts.get("dense_params"),
         trial.counts["bytes"], trial.counts["mixed_bytes"], float(trial.removed["threshold"]),
         _last(trial, FULL_ERROR), trial.val_error, trial.removed.get("mixed_error"), bool(trial.removed.get("masked")))
        for trial in _removed_trials(study)
    )  # fmt: skip
    texts = tuple(
        (trial_id, prior, _grouped(params), f"{params / dense:.1%}" if params and dense else "", _grouped(size),
         _grouped(mixed), "none" if threshold is None or threshold > 1e20 else f"{threshold:.2f}",
         _percent(full), _percent(error), _percent(rounded),
         "masked" if masked else "removed")
        for trial_id, prior, params, dense, size, mixed, threshold, full, error, rounded, masked in rows
    )  # fmt: skip
    columns = (
        "trial_id", "prior", "params", "dense_params", "bytes", "mixed_bytes", "threshold", "full_val_error",
        "val_error", "mixed_val_error", "masked",
    )  # fmt: skip
    headings = (
        "trial", "prior", "parameters", "of dense", "bytes", "bytes, mixed", "threshold", "before", "after",
        "mixed precision", "groups",
    )  # fmt: skip
    return ReportTable(name="removed", columns=columns, rows=rows, texts=texts, headings=headings)


def removed_layers_table(study: StudyRecord) -> ReportTable:
    """Return the groups that stay in each layer of each trial, and the bits of their weights.

    Args:
        study: the records.

    Returns:
        One row a layer of a trial.
    """
    rows = tuple(
        (trial.trial_id, _prior(trial), trial.counts.get("params"), name, alive, groups,
         trial.removed.get("bits", {}).get(name), _last(trial, KL + name))
        for trial in _removed_trials(study) for name, (alive, groups) in trial.removed.get("alive", {}).items()
    )  # fmt: skip
    texts = tuple(
        (f"{prior}, {params:,}", name, f"{alive} of {groups}", str(bits), "" if kl is None else f"{kl:,.0f}")
        for _, prior, params, name, alive, groups, bits, kl in rows
    )
    columns = ("trial_id", "prior", "params", "layer", "alive", "groups", "bits", "kl")
    headings = ("network", "layer", "groups that stay", "bits", "KL in nats")
    return ReportTable(name="removed_layers", columns=columns, rows=rows, texts=texts, headings=headings)


def posterior_epochs_table(study: StudyRecord) -> ReportTable:
    """Return the data term, the divergence and what the posterior would leave, by epoch.

    Args:
        study: the records.

    Returns:
        One row an epoch of a trial; in words some epochs of the first trial of each prior.
    """
    rows = tuple(
        (trial.trial_id, _prior(trial), number, *(metrics.get(name) for name in _EPOCH_METRICS))
        for trial in _removed_trials(study) for number, metrics in sorted(trial.epochs.items())
    )  # fmt: skip
    texts = []
    for trial in _first_of_each_prior(study):
        numbers = sorted(trial.epochs)
        step = max(1, len(numbers) // SHOWN_EPOCHS)
        for number in [*numbers[step - 1 : -1 : step], numbers[-1]]:
            values = [trial.epochs[number].get(name) for name in _EPOCH_METRICS]
            texts.append((_prior(trial), str(number), *("" if value is None else f"{value:.4g}" for value in values)))
    columns = ("trial_id", "prior", "epoch", *_EPOCH_METRICS)
    headings = ("prior", "epoch", "data term", "KL / examples", "weight of KL", "sparsity", "compression", "error in %")
    return ReportTable(name="posterior_epochs", columns=columns, rows=rows, texts=tuple(texts), headings=headings)


def posterior_layers_table(study: StudyRecord) -> ReportTable:
    """Return by epoch and layer the divergence, the groups alive and the histogram of signal-to-noise ratios.

    Args:
        study: the records.

    Returns:
        One row a metric of a layer in an epoch; in words the last histogram of each layer, of the first trial of each
        prior.
    """
    rows = tuple(
        (trial.trial_id, number, name, value)
        for trial in _removed_trials(study) for number, metrics in sorted(trial.epochs.items())
        for name, value in metrics.items() if name.startswith(LAYER_METRIC_PREFIXES)
    )  # fmt: skip
    texts = []
    edges: tuple[str, ...] = ()
    for trial in _first_of_each_prior(study):
        last = trial.epochs[trial.last_epoch]
        for layer in (name.removeprefix(KL) for name in last if name.startswith(KL)):
            prefix = f"{SIGNAL_TO_NOISE}{layer}."
            shares = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
            edges = edges or tuple(shares)
            texts.append((_prior(trial), layer, *(f"{100 * shares.get(edge, 0):.0f}" for edge in edges)))
    columns = ("trial_id", "epoch", "metric", "value")
    headings = ("prior", "layer", *(f"< 10^{edge}" if edge != "inf" else "above" for edge in edges))
    return ReportTable(name="posterior_layers", columns=columns, rows=rows, texts=tuple(texts), headings=headings)


def _grouped(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _removed_trials(study: StudyRecord) -> Iterator[TrialRecord]:
    return (trial for trial in study.trials.values() if trial.removed and not trial.broken)


def _first_of_each_prior(study: StudyRecord) -> Sequence[TrialRecord]:
    """The first trial of each prior that has epochs on record."""
    trials: dict[str, TrialRecord] = {}
    for trial in _removed_trials(study):
        if trial.epochs:
            trials.setdefault(_prior(trial), trial)
    return list(trials.values())


def _prior(trial: TrialRecord) -> str:
    settings = {} if trial.specification is None else trial.specification.method.settings()
    return str(settings.get("prior", "")).replace("_", "-")


def _last(trial: TrialRecord, name: str) -> float | None:
    return trial.epochs.get(trial.last_epoch, {}).get(name)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"
