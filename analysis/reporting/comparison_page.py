"""Writes the comparison of several studies as one HTML page with its pictures and tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from analysis.findings import StudyComparison
from analysis.reporting.figures import draw_fronts, draw_hypervolume
from analysis.reporting.html_page import Page
from analysis.reporting.render import DrawJob, InlineExecutor
from analysis.reporting.tables import ReportTable, format_point_error
from analysis.stats import FrontComparison
from analysis.utils import status_label
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
    _add_fronts(page, comparison.fronts, folder)
    _add_volumes(page, comparison.fronts, folder)
    _add_differences(page, comparison, folder)
    path = folder / PAGE_FILE
    write_text(path, page.html())
    return path


def _add_fronts(page: Page, fronts: FrontComparison, folder: Path) -> None:
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
    table.write(folder)
    page.table(table)


def front_table(fronts: FrontComparison) -> ReportTable:
    """Return the points of each front; several seeds as their mean and deviation.

    Args:
        fronts: of the studies.

    Returns:
        The table, one row a point.
    """
    points = [(name, point) for name, front in zip(fronts.names, fronts.fronts, strict=True) for point in front]
    rows = tuple((name, p.trial_id, p.name, p.params, p.error, p.spread, p.seeds) for name, p in points)
    return ReportTable(
        name="fronts", rows=rows,
        columns=("study", "trial_id", "setting", "params", "val_error", "standard_deviation", "seeds"),
        texts=tuple((name, p.name, f"{p.params:,}", format_point_error(p), p.trial_id) for name, p in points),
        headings=("study", "setting", "parameters", "error", "trial"),
    )  # fmt: skip


def _add_volumes(page: Page, fronts: FrontComparison, folder: Path) -> None:
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
    table.write(folder)
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


def _add_differences(page: Page, comparison: StudyComparison, folder: Path) -> None:
    page.section("What differs")
    columns = ("field", *comparison.fronts.names)
    rows = tuple((difference.field, *difference.values) for difference in comparison.fields)
    texts = tuple((field, *("" if value is None else str(value) for value in values)) for field, *values in rows)
    settings = ReportTable(name="fields", columns=columns, rows=rows, texts=texts)
    settings.write(folder)
    page.heading("Settings")
    if rows:
        page.table(settings)
    else:
        page.text("None: the questions are the same.")
    page.heading("Trials")
    trials = trial_table(comparison)
    trials.write(folder)
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
