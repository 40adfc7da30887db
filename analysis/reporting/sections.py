"""The sections of a report: each draws its pictures, writes its tables and adds both to the page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from analysis.findings import Provenance, TrackingLink, group_failures, series_of_test_errors
from analysis.reporting.contents import Report
from analysis.reporting.figures import draw_curves, draw_effects, draw_heat_map, draw_importance, draw_test_errors
from analysis.reporting.front_data import front_plot
from analysis.reporting.front_figure import draw_front
from analysis.reporting.html_page import Page
from analysis.reporting.render import DrawJob
from analysis.reporting.tables import (
    budget_table,
    budgets_table,
    cost_table,
    curves_table,
    equal_size_table,
    failure_groups_table,
    failures_table,
    heat_map_table,
    importance_table,
    initial_table,
    layers_table,
    paired_effects_table,
    points_table,
    posterior_epochs_table,
    posterior_layers_table,
    profile_table,
    removed_layers_table,
    removed_table,
    repeats_table,
    reproduce_table,
    table_of_test_errors,
)
from analysis.stats import SizeMeasure, mixed_fields, mixed_text, pairing_sentence, share_base, study_strata
from analysis.utils import format_duration
from lowrank.utils import format_counted, format_times
from sweeps.records import Status, StudyRecord, count_test_looks

Section = Callable[[Page, StudyRecord, Report, Path], None]
SHOWN_EFFECTS = 14  # in the picture; the table has all


def new_page(
    study: StudyRecord, provenance: Provenance, tracking: TrackingLink | None, folder: Path, executor: Executor
) -> Page:
    """Begin a page with the study's question and how it came about.

    Args:
        study: the records.
        provenance: of the study.
        tracking: where MLflow has it; None if it does not.
        folder: where pictures are written.
        executor: draws them.

    Returns:
        A page without sections.
    """
    page = Page((study.header.question or study.name).strip(), folder, executor, provenance.line)
    if not study.header.versions:
        page.text("The records hold no header: question, versions and hardware are not known.", "note")
    elif (study.closed or {}).get("reason") != "finished":
        page.text(_unfinished(study), "note")
    if mark := mixed_text(mixed_fields(study)):
        page.text(mark, "note")
    link = ("MLflow", tracking.words, tracking.link) if tracking else None
    page.details("Command, data, machines, seeds, versions", provenance.facts, link)
    return page


def _unfinished(study: StudyRecord) -> str:
    """How far a study is that has not ended."""
    statuses = [trial.status for trial in study.trials.values()]
    running, waiting = statuses.count(Status.RUNNING), statuses.count(Status.PROPOSED)
    closed = study.closed or {}
    why = "The study was stopped before its end" if closed else "The study had not ended when this was written"
    if closed.get("reason") == "failed":
        why = f"The study was ended by an error: {closed.get('error', '')}".rstrip(": ")
    parts = f"{format_counted(len(statuses), 'trial')}, {running:,} of them running, {waiting:,} waiting"
    return f"{why} ({parts}): all below may change."


def answer_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add the answer in words, then what is best within each budget."""
    page.answer(report.summary)
    table = budget_table(report.answers, report.points)
    table.write(folder)
    if table.rows:
        page.heading("Best within each budget")
        page.table(table)
        page.text(
            "Errors are validation errors, in percent; differences are in points of error, negative is better. The "
            "best of many trials looks better than it is; “corrected for the choice” is its error on images (and "
            "seeds) that the choice did not see, with a 95 % interval (docs/guides/how_sure.md). A method of which "
            "more settings were tried has a better best: “expected best of n” is the mean best of n settings within "
            "the budget, with one n for the methods of a row, each setting by its first seed.", "note",
        )  # fmt: skip
    levels = equal_size_table(report.answers, report.points)
    levels.write(folder)
    if levels.rows:
        page.heading("The methods at equal size")
        page.table(levels)
        page.text(
            "Where the methods' best within a budget differ in size, each is read off its own front at one size: the "
            "budget's, or that of the best where more methods reach that. Between two neighbouring points of a front "
            "the error is taken as linear in the logarithm of size, seed by seed; never beyond its ends. Intervals are "
            "95 % t-intervals over seeds. “Expected best of n” is the mean best of n of a method's settings within the "
            "budget, with one n for all methods of the budget.", "note",
        )  # fmt: skip


def front_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add the fronts: error against parameters and mult-adds, with their points."""
    page.section("Fronts")
    if not any(point.finished for point in report.points):
        page.text("No trial was trained to its end.")
        return
    measures: tuple[tuple[SizeMeasure, str], ...] = (("params", "parameters"), ("mult_adds", "mult-adds of one image"))
    for measure, label in measures:
        if any(point.finished and point.size(measure) is not None for point in report.points):
            plot = front_plot(study, report.points, measure, report.evidence)
            caption = f"Validation error against {label}; lower left is best. Rings and steps are the front; labels "
            caption += "are dimensions (d) and rank scale."
            if plot.band:
                caption += " Grey band: 95 % interval of each size by itself, corrected for the choice."
            caption += " Bars: standard deviation over seeds." if plot.spreads else ""
            page.picture(DrawJob(name=f"front_{measure}", caption=caption, draw=draw_front, data=plot))
    fronts = {
        "params": {point.trial_id for point in report.front},
        "mult_adds": {point.trial_id for point in report.front_mult_adds},
    }
    points = {id(point): point for point in (*report.front, *report.front_mult_adds, *report.references)}
    table = points_table("front", sorted(points.values(), key=lambda point: point.params), fronts, share_base(study))
    table.write(folder)
    page.table(table)
    points_table("trials", report.points, fronts, share_base(study)).write(folder)
    page.text(f"Every trial of known size ({len(report.points):,}):", "note")
    page.file("trials.csv")


def test_error_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add the test errors, with printed results of the same data and split."""
    page.section("Test errors")
    if not report.test_errors:
        page.text("The test split was not looked at: that is done for the front when a study has first ended.")
    else:
        series = series_of_test_errors(report.points, report.test_errors, report.published)
        looks, tested = count_test_looks(study), sum(error.seeds for error in report.test_errors)
        times = format_times(looks) if looks else "an unknown number of times"
        caption = "Test error against parameters: of the front and the references only. The test split was looked at "
        caption += f"{times}, {format_counted(tested, 'trial')}."
        if any(error.left_front for error in report.test_errors):
            caption += " Faint marks have left the front since; the test errors played no part in that."
        caption += " Hollow marks are printed results of the same data and split." if report.published else ""
        height = 4.2 + 0.11 * len(series)
        page.picture(DrawJob(
            name="test_errors", caption=caption, draw=draw_test_errors, data=series, height=height,
            narrow_height=height,
        ))  # fmt: skip
        table = table_of_test_errors(report.test_errors, report.published)
        table.write(folder)
        page.table(table)
    if report.published_note:
        page.text(report.published_note, "note")


def heat_map_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add a heat map of dimensions against rank for each method."""
    page.section("Dimensions against rank")
    if not report.heat_maps:
        page.text("No method was searched in several dimensions and ranks.")
    for number, heat in enumerate(report.heat_maps):
        when, grey = "", "nothing trained to its end (s: stopped early, x: failed)"
        if heat.epoch is not None:
            when, grey = f" after epoch {heat.epoch}, the last that all of them reached", "did not reach it"
        caption = (
            f"{heat.method[0].upper()}{heat.method[1:]}: lowest validation error (%){when}, by dimensions and "
            f"{heat.column_quantity}, {describe_seeds(*heat.seeds)}. Small figures: settings tried, where "
            f"cells differ in that; the lowest of more looks better. Light grey: {grey}. Empty: not tried."
        )
        name = f"heat_{number + 1}_{heat.method.replace(' ', '_')}"
        heat_map_table(name, heat).write(folder)
        wide, narrow = 1.5 + 0.36 * len(heat.rows), 1.0 + 0.3 * len(heat.columns)
        page.picture(
            DrawJob(name=name, caption=caption, draw=draw_heat_map, data=heat, height=wide, narrow_height=narrow)
        )
        page.file(f"{name}.csv")


def describe_seeds(fewest: int, most: int) -> str:
    """Say of how many seeds a figure's errors are means.

    Args:
        fewest: seeds of a setting.
        most: seeds of a setting.

    Returns:
        E.g. `means over 3 seeds`.
    """
    if most <= 1:
        return "of one seed each"
    return f"means over {most} seeds" if fewest == most else f"means over {fewest} to {most} seeds"


def curve_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add the learning curves of the front."""
    page.section("Learning curves of the front")
    if not report.curves:
        page.text("The records hold no epochs of the front's trials.")
        return
    curves_table(report.curves).write(folder)
    caption = (
        "Validation error by epoch: the front (solid, evenly chosen where it is long; with the number of parameters) "
        "and references (dashed)."
    )
    rows = len(report.curves)
    page.picture(DrawJob(
        name="learning_curves", caption=caption, draw=draw_curves, data=report.curves, height=4.4 + 0.1 * rows,
        narrow_height=3.6 + 0.2 * rows,
    ))  # fmt: skip
    page.file("learning_curves.csv")


def initial_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add errors before any training, of networks and layers, for studies that begin with a trained network."""
    table = initial_table(report.points)
    if not table.rows:
        return
    page.section("Before any training")
    table.write(folder)
    budgets = budgets_table(study_strata(study), report.points)
    budgets.write(folder)
    if budgets.texts:
        page.text("The lowest error of each method within each budget; in brackets that before any training.", "note")
        page.table(budgets)
    page.text(
        "Validation errors right after the start from trained weights, and after training. “In all” counts the epochs "
        "of the trained network too, where they are on record.", "note",
    )  # fmt: skip
    page.table(table)
    layers = layers_table(study, report.front)
    layers.write(folder)
    if layers.texts:
        page.heading("Layers of the front")
        page.text(
            "Weight error: of the layer's weight, relative to the trained one's norm. Output error: root of the share "
            "of the outputs' variance that is missed on calibration images, with what really enters the layer where "
            "layers are fitted in order. A fit to outputs may take weights far from the trained ones.", "note",
        )  # fmt: skip
        page.table(layers)
    else:
        page.file("layers.csv")


def posterior_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add what Bayesian compression has left, and what its posteriors looked like while they were trained."""
    table = removed_table(study)
    if not table.rows:
        return
    page.section("Bayesian compression")
    table.write(folder)
    page.text(
        "Groups of weights with a score over the threshold are removed after the training; the threshold is the "
        "largest whose network is within the trial's budget. Before and after: validation errors of the posterior mean "
        "with all groups and of what is left. Mixed precision: with the bits that the posterior variances ask for, as "
        "Louizos, Ullrich and Welling (2017) count them; the bytes are those of the weights alone.", "note",
    )  # fmt: skip
    page.table(table)
    layers = removed_layers_table(study)
    layers.write(folder)
    page.heading("Layers")
    page.table(layers)
    epochs = posterior_epochs_table(study)
    epochs.write(folder)
    if epochs.texts:
        page.heading("By epoch")
        page.text(
            "Sparsity and compression are those at the fixed threshold of the method's settings. The last epoch's "
            "error is the one after the removal.", "note",
        )  # fmt: skip
        page.table(epochs)
    histograms = posterior_layers_table(study)
    histograms.write(folder)
    if histograms.texts:
        page.heading("Signal-to-noise ratios after the last epoch")
        page.text("Weights of each layer in percent, by |mean| over standard deviation of their posterior.", "note")
        page.table(histograms)


def importance_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add which fields the error depends on."""
    page.section("What the error depends on")
    note = next((importance.note for importance in report.importances if importance.note), "")
    if note:
        page.text(f"Not computed: {note}.")
        return
    importance_table(report.importances).write(folder)
    for within in (True, False):
        importances = [importance for importance in report.importances if importance.within_budgets is within]
        if importances:
            first = importances[0]
            name = "importance_within_budgets" if within else "importance_all_sizes"
            caption = "Within budgets: the error less the median of its stratum." if within else "Over all sizes."
            seeds = f", each by its mean over up to {first.seeds} seeds" if first.seeds > 1 else ", one seed each"
            caption += f" From {first.trials:,} completed settings{seeds}; shares of one evaluator sum to 100 %."
            height = 1.1 + 0.42 * len(first.shares)
            page.picture(DrawJob(
                name=name, caption=caption, draw=draw_importance, data=importances, height=height,
                narrow_height=height + 0.4,
            ))  # fmt: skip
    page.text(
        "PED-ANOVA asks what sets the best tenth of the trials apart, mean decrease of impurity which fields a forest "
        "of decision trees splits by. Shares say what goes along with the error in these trials, not what causes it; "
        "the sampler did not try all values equally often.", "note",
    )  # fmt: skip
    if left_out := report.importances[0].left_out:
        page.text(
            f"Without a share, because not every setting has them: {', '.join(left_out)}. The shares of the others sum "
            "to 100 % all the same.", "note",
        )  # fmt: skip
    page.file("importance.csv")


def paired_effects_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add what one choice at a time changed."""
    page.section("One choice at a time")
    table = paired_effects_table(report.effects)
    table.write(folder)
    if not report.effects:
        page.text(
            "No two completed trials can be paired: no searched field has two to nine values that were both trained."
        )
        return
    page.text(
        "Differences of validation error between paired trials, in points; negative means that the first named value "
        "is better. “All else equal”: the trials differ in this one choice and share the seed; sizes that were solved "
        "from a budget, and the teacher that comes with a weight above 0, are no second difference. “Best within each "
        "budget”, shown where no two trials pair so: the best setting of each value, budget by budget, whatever else "
        "they differ in. Intervals are two-sided t-intervals of the mean paired difference, at 95 %, over the units "
        "named, and over the images where the records say which were wrong. Verdicts are corrected for the number of "
        "effects shown (Holm); the strongest come first. Trials that were stopped "
        "early take no part, which favours values that lose often.",
        "note",
    )  # fmt: skip
    effects = report.effects[:SHOWN_EFFECTS]
    height = 0.9 + 0.3 * len(effects)
    caption = "Mean paired differences with 95 % t-intervals; a cross has no interval (a single pair)."
    if len(effects) < len(report.effects):
        caption += f" The first {len(effects)} of {len(report.effects)}."
    page.picture(
        DrawJob(name="ablation", caption=caption, draw=draw_effects, data=effects, height=height, narrow_height=height)
    )
    page.table(table)


def repeat_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add the settings with several seeds; nothing where there are none."""
    if not report.repeats:
        return
    page.section("Repeats")
    gaps = [repeat.same_images for repeat in report.repeats if repeat.gap is not None]
    text = "Means over seeds with two-sided 95 % t-intervals; gaps are paired by seed."
    page.text(" ".join([text, *[pairing_sentence(sum(gaps), len(gaps))] * bool(gaps)]), "note")
    table = repeats_table(report.repeats)
    table.write(folder)
    page.table(table)


def failure_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add what failed, where and why."""
    page.section("What failed")
    failures_table(report.failures).write(folder)
    if not report.failures:
        page.text("Nothing: no trial failed, diverged, ran out of memory, was infeasible or is marked as broken.")
        return
    broken = sum(failure.kind == "marked as broken" for failure in report.failures)
    if broken:
        many = f"{broken:,} trials are marked as broken; they take"
        page.text(f"{many if broken > 1 else '1 trial is marked as broken; it takes'} part in nothing above.", "note")
    table = failure_groups_table(group_failures(list(report.failures)))
    table.write(folder)
    page.table(table)
    page.text("Each of them, with its epoch and host:", "note")
    page.file("failures.csv")


def cost_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add what the study cost."""
    page.section("Cost")
    cost = report.cost
    facts = [
        (format_duration(cost.train_seconds), "training, all trials together"),
        (f"{cost.gpu_hours:.2f} h" if cost.gpu_hours else "none" if cost.gpu_hours == 0 else "unknown", "GPU time"),
        (
            format_duration(cost.wall_seconds) if cost.wall_seconds else "unknown",
            "from the first proposal to the last end",
        ),
        (f"{cost.images_per_second:,.0f}" if cost.images_per_second else "unknown", "images/s, median trial"),
        (f"{cost.throughput:,.0f}" if cost.throughput else "unknown", "images/s, whole study"),
        (f"{format_duration(cost.start_seconds)}, {100 * cost.start_share:.1f} %", f"lost to {cost.attempts:,} starts"),
    ]
    if cost.again:
        facts.append((f"{cost.again:,}", "starts that were repeats after a failure or a resume"))
    if cost.adopted:
        facts.append((f"{cost.adopted:,}", "trials that another study of the series trained; their cost is there"))
    page.facts(facts)
    table = cost_table(cost)
    table.write(folder)
    page.table(table)
    if report.profile is not None:
        table = profile_table(report.profile)
        table.write(folder)
        page.text(
            f"Where the time of {format_duration(report.profile.wall_seconds)} on "
            f"{max(run.slots for run in report.profile.runs)} slots went, starts and ends included:", "note",
        )  # fmt: skip
        page.table(table)


def reproduce_section(page: Page, study: StudyRecord, report: Report, folder: Path) -> None:
    """Add a command for each point that trains it again."""
    page.section("Train a point again")
    reproduce_table(report.reproduce_commands).write(folder)
    page.text(
        "Each command trains one point of the front, or one reference, once more, from the project's folder: the "
        "specification on record, under the same id if the code still builds the same. At its end it says whether the "
        "errors are the same; on a CPU, with the same versions, they are to the last digit. Any other trial goes by "
        "its id (trials.csv).", "note",
    )  # fmt: skip
    for command in report.reproduce_commands:
        text = command.command or f"# no command: {command.why_not}"
        page.command(f"{command.name} ({command.trial_id})", text)


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("answer", answer_section), ("fronts", front_section), ("test errors", test_error_section),
    ("shapes", heat_map_section), ("start", initial_section), ("posterior", posterior_section),
    ("curves", curve_section), ("importance", importance_section), ("ablation", paired_effects_section),
    ("repeats", repeat_section), ("failures", failure_section), ("cost", cost_section), ("commands", reproduce_section),
)  # fmt: skip
