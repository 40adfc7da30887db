"""Writes the comparison of several studies as one HTML page with its pictures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from analysis.findings import StudyComparison
from analysis.reporting.figures import draw_fronts, draw_hypervolume
from analysis.reporting.html_page import Page
from analysis.reporting.render import DrawJob, InlineExecutor
from analysis.reporting.tables import ReportTable, format_epochs, format_point_error
from analysis.stats import BestDifference, FrontComparison, mixed_text
from analysis.utils import format_percent, format_points_interval, status_label
from lowrank.utils import write_text

PAGE_FILE = "comparison.html"


def write_comparison(comparison: StudyComparison, folder: Path) -> Path:
    """Write the page, its pictures and its tables.

    Args:
        comparison: what to show.
        folder: to write into; it is made.

    Returns:
        The path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = comparison.fronts.names
    page = Page(f"{', '.join(names[:-1])} and {names[-1]} compared", folder, InlineExecutor())
    page.answer(comparison.sentences())
    mark = mixed_text(comparison.mixed)
    _add_fronts(page, comparison.fronts, folder, mark)
    _add_bests(page, comparison, folder, mark)
    _add_volumes(page, comparison.fronts, folder, mark)
    _add_differences(page, comparison, folder, mark)
    path = folder / PAGE_FILE
    write_text(path, page.html())
    return path


def with_mark(table: ReportTable, mark: str) -> ReportTable:
    """Return a table whose CSV file says in every row that unequal trials stand in it.

    Args:
        table: of a comparison.
        mark: of `mixed_text`; "" leaves the cells empty.

    Returns:
        The table with a further column for CSV, `mixed`.
    """
    rows = tuple((*row, mark or None) for row in table.rows)
    return replace(table, columns=(*table.columns, "mixed"), rows=rows, headings=table.headings or table.columns)


def _add_fronts(page: Page, fronts: FrontComparison, folder: Path, mark: str) -> None:
    page.section("Fronts")
    lines = [
        (name, [(float(point.params), point.error) for point in points])
        for name, points in zip(fronts.names, fronts.fronts, strict=True)
        if points
    ]
    if lines and fronts.same_data:
        caption = "The front of each study: validation error against parameters, lower left is best."
        page.picture(DrawJob(name="fronts", caption=caption, draw=draw_fronts, data=lines))
    table = front_table(fronts)
    with_mark(table, mark).write(folder)
    page.table(table)


def front_table(fronts: FrontComparison) -> ReportTable:
    """Return the points of each front; several seeds as their mean and deviation.

    Args:
        fronts: of the studies.

    Returns:
        The table, one row a point.
    """
    points = [(name, point) for name, front in zip(fronts.names, fronts.fronts, strict=True) for point in front]
    rows = tuple(
        (name, p.trial_id, p.name, p.params, p.error, p.spread, p.seeds, p.epochs, p.total_epochs) for name, p in points
    )
    return ReportTable(
        name="fronts", rows=rows,
        columns=("study", "trial_id", "setting", "params", "val_error", "standard_deviation", "seeds", "epochs",
                 "total_epochs"),
        texts=tuple(
            (name, p.name, f"{p.params:,}", format_epochs(p), format_point_error(p), p.trial_id) for name, p in points
        ),
        headings=("study", "setting", "parameters", "epochs", "error", "trial"),
    )  # fmt: skip


def _add_bests(page: Page, comparison: StudyComparison, folder: Path, mark: str) -> None:
    if not comparison.bests:
        return
    page.section("The best within each budget")
    page.text(
        f"{comparison.pairing} {comparison.choice} Verdicts are corrected for {len(comparison.bests)} comparisons "
        "(Holm). The expected best of n settings is what each study would have had, had it tried as many as the "
        "other.", "note",
    )  # fmt: skip
    table = bests_table(comparison.bests)
    with_mark(table, mark).write(folder)
    page.table(table)


def bests_table(bests: Sequence[BestDifference]) -> ReportTable:
    """Return the best of each study within each budget, against that of the first study.

    Args:
        bests: of the studies.

    Returns:
        The table, one row a budget and study.
    """
    rows = tuple(
        (b.budget, b.study, b.base_study, b.best.trial_id, b.base.trial_id, b.best.error, b.base.error, b.gap.mean,
         b.gap.low, b.gap.high, b.gap.count, b.same_images, b.p_value, b.n, b.expected, b.base_expected,
         b.best.total_epochs, b.base.total_epochs,
         *((b.selected.mean, b.selected.low, b.selected.high) if b.selected else (None, None, None)))
        for b in bests
    )  # fmt: skip
    texts = tuple(
        (b.budget, f"{b.study}: {b.best.name}", format_epochs(b.best), format_point_error(b.best),
         f"{b.base_study}: {b.base.name}", format_epochs(b.base), format_point_error(b.base),
         format_points_interval(b.gap), format_points_interval(b.selected), b.verdict,
         f"{format_percent(b.expected)} against {format_percent(b.base_expected)} (n = {b.n})")
        for b in bests
    )  # fmt: skip
    columns = (
        "budget", "study", "base_study", "trial_id", "base_trial_id", "val_error", "base_val_error", "difference",
        "low_95", "high_95", "seeds", "same_images", "p_value_corrected", "n", "expected_best_of_n",
        "base_expected_best_of_n", "total_epochs", "base_total_epochs", "difference_corrected",
        "difference_corrected_low_95", "difference_corrected_high_95",
    )  # fmt: skip
    headings = (
        "budget", "best", "epochs", "error", "against", "epochs", "error", "points (95 %)", "corrected for the choice",
        "verdict",
        "expected best of n",
    )  # fmt: skip
    return ReportTable(name="bests", columns=columns, rows=rows, texts=texts, headings=headings)


def _add_volumes(page: Page, fronts: FrontComparison, folder: Path, mark: str) -> None:
    page.section("Hypervolume at equal cost")
    point = fronts.reference
    page.text(
        f"Error and log10 of parameters, both minimised, against one reference point: {point.params:,.0f} "
        f"parameters and {point.error:g} %. Points beyond it are dropped. The unit is points of error times decades of "
        "parameters. Each trial of the search counts by its own error: further seeds came after it.",
        "note",
    )
    if fronts.same_data and any(growth.steps for growth in fronts.growths):
        caption = f"Hypervolume over {fronts.unit} of training; the dashed line is the cost that all of them spent."
        draw = partial(draw_hypervolume, unit=fronts.unit)
        page.picture(
            DrawJob(name="hypervolume", caption=caption, draw=draw, data=fronts.growths, height=4.6, narrow_height=4.2)
        )
    table = volume_table(fronts)
    with_mark(table, mark).write(folder)
    page.table(table)


def volume_table(fronts: FrontComparison) -> ReportTable:
    """Return the hypervolume of each study at equal cost and at its end.

    Args:
        fronts: of the studies.

    Returns:
        The table, one row a study.
    """
    rows = tuple((g.study, g.at(fronts.equal_cost), g.at(g.cost), g.cost, len(g.steps)) for g in fronts.growths)
    texts = tuple(
        (name, f"{equal:.3f}", f"{final:.3f}", f"{cost:,.0f}", f"{steps:,}") for name, equal, final, cost, steps in rows
    )
    return ReportTable(
        name="hypervolume", columns=("study", "at_equal_cost", "at_its_end", f"{fronts.unit}", "completed"), rows=rows,
        texts=texts, headings=("study", "at equal cost", "at its end", f"cost in {fronts.unit}", "completed trials"),
    )  # fmt: skip


def _add_differences(page: Page, comparison: StudyComparison, folder: Path, mark: str) -> None:
    page.section("What differs")
    columns = ("field", *comparison.fronts.names)
    rows = tuple((difference.field, *difference.values) for difference in comparison.fields)
    texts = tuple((field, *("" if value is None else str(value) for value in values)) for field, *values in rows)
    settings = ReportTable(name="fields", columns=columns, rows=rows, texts=texts)
    with_mark(settings, mark).write(folder)
    page.heading("Settings")
    if rows:
        page.table(settings)
    else:
        page.text("None: the questions are the same.")
    page.heading("Trials")
    trials = trial_table(comparison)
    with_mark(trials, mark).write(folder)
    if trials.texts:
        page.table(trials)
    else:
        page.text("None: every trial is in all studies and came out the same.")


def trial_table(comparison: StudyComparison) -> ReportTable:
    """Return all trials for CSV; for readers those that differ between studies.

    Args:
        comparison: of the studies.

    Returns:
        The table, one row a trial.
    """
    names = comparison.fronts.names
    columns = ("trial_id", "setting", "kind", *(f"{part}_{name}" for name in names for part in ("status", "val_error")))
    rows = tuple(
        (t.trial_id, t.setting, t.kind, *(v for pair in zip(t.statuses, t.errors, strict=True) for v in pair))
        for t in comparison.trials
    )
    texts = tuple(
        (t.setting, t.kind, *(_outcome(s, e) for s, e in zip(t.statuses, t.errors, strict=True)), t.trial_id)
        for t in comparison.trials
        if t.kind != "same"
    )
    headings = ("setting", "what", *names, "trial")
    return ReportTable(name="trials", columns=columns, rows=rows, texts=texts, headings=headings)


def _outcome(status: str, error: float | None) -> str:
    label = status_label(status)
    return f"{error:.2f} %, {label}" if error is not None else label or "-"
