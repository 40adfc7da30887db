"""`python analysis/compare.py STUDY STUDY ...`: fronts, hypervolume at equal cost, and the trials that differ."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analysis.cli.arguments import add_stores, load_named, open_page, output_folder, run_script
from analysis.findings.study_diff import FieldDifference, TrialDifference, field_differences, trial_differences
from analysis.reporting.figures import draw_fronts, draw_growth
from analysis.reporting.html_page import Page
from analysis.reporting.render import Order, Studio
from analysis.reporting.tables import Sheet, error_words
from analysis.stats.front import FrontPoint, collect, front
from analysis.stats.hypervolume import Growth, Reference, chance_reference, growth
from analysis.utils.progress import steps
from lowrank.errors import InputError
from sweeps.records.names import StudyRecord

PAGE_FILE = "comparison.html"
FOLDER = "comparisons"
UNITS = ("seconds", "epochs")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Studies side by side; `equal_cost` is what the cheapest of them spent on its search, in `unit`."""

    names: tuple[str, ...]
    reference: Reference
    unit: str
    equal_cost: float
    growths: tuple[Growth, ...]
    fronts: tuple[tuple[FrontPoint, ...], ...]
    fields: tuple[FieldDifference, ...]
    trials: tuple[TrialDifference, ...]
    same_data: bool

    def sentences(self) -> list[str]:
        """The answer in words."""
        if not self.same_data:
            return ["The studies are on different data or splits: their errors cannot be compared, only their trials."]
        cost = f"{self.equal_cost:,.0f} {'s of training' if self.unit == 'seconds' else 'epochs'}"
        ranked = sorted(self.growths, key=lambda each: -each.at(self.equal_cost))
        volumes = "; ".join(_volume(each, self.equal_cost) for each in ranked)
        counts = {kind: sum(each.kind == kind for each in self.trials) for kind in ("same", "differs", "not in all")}
        return [
            f"After the same cost, {cost}, the hypervolumes are: {volumes} (higher is better).",
            f"{counts['same']:,} trials are the same in all, {counts['differs']:,} came out differently, "
            f"{counts['not in all']:,} are not in all.",
        ]


def _volume(found: Growth, cost: float) -> str:
    volume = found.at(cost)
    done = any(spent <= cost for spent, _ in found.steps)
    return f"{found.study} {volume:.2f}" + ("" if done else " (no trial was completed by then)")


def compare(studies: Sequence[StudyRecord], unit: str = "seconds", reference: Reference | None = None) -> Comparison:
    """Compare two studies or more.

    Raises:
        InputError: the studies' networks differ in size and no reference was given, or costs are not on record.
    """
    found = reference or _shared_reference(studies)
    growths = tuple(growth(study, found, unit) for study in studies)
    return Comparison(
        names=tuple(study.name for study in studies), reference=found, unit=unit,
        equal_cost=min(each.cost for each in growths), growths=growths,
        fronts=tuple(tuple(front(collect(study))) for study in studies), fields=tuple(field_differences(studies)),
        trials=tuple(trial_differences(studies)), same_data=len({_fingerprint(study) for study in studies}) == 1,
    )  # fmt: skip


def _fingerprint(study: StudyRecord) -> str:
    known = {str(trial.specification.get("data", {}).get("fingerprint", "")) for trial in study.trials.values()}
    return ",".join(sorted(known - {""}))


def _shared_reference(studies: Sequence[StudyRecord]) -> Reference:
    found = {chance_reference(study) for study in studies}
    if len(found) > 1:
        listed = "; ".join(f"{each.params:,.0f},{each.error:g}" for each in sorted(found, key=lambda each: each.params))
        raise InputError(f"the studies must share one reference point; give one by --reference, of: {listed}")
    return found.pop()


def parse_reference(text: str) -> Reference:
    """A point from `PARAMS,ERROR`; raises InputError."""
    try:
        params, error = (float(part) for part in text.split(","))
    except ValueError as fault:
        raise InputError(f"--reference must be PARAMS,ERROR (such as 750000,90), but got {text!r}") from fault
    if not (params > 0 and 0 < error <= 100):
        raise InputError(f"--reference must be parameters above 0 and a percentage, but got {text!r}")
    return Reference(params, error)


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write the page, its pictures and its tables into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(f"{', '.join(found.names[:-1])} and {found.names[-1]} compared", Studio(folder))
    page.answer(found.sentences())
    _fronts(page, found, folder)
    _volumes(page, found, folder)
    _differences(page, found, folder)
    path = folder / PAGE_FILE
    temporary = path.with_name(f"{PAGE_FILE}.tmp")
    temporary.write_text(page.html(), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _fronts(page: Page, found: Comparison, folder: Path) -> None:
    page.section("Fronts")
    drawn = [
        (name, [(float(point.params), point.error) for point in points])
        for name, points in zip(found.names, found.fronts, strict=True)
        if points
    ]
    if drawn and found.same_data:
        caption = "The front of each study: validation error against parameters, lower left is best."
        page.picture(Order(name="fronts", caption=caption, draw=draw_fronts, data=drawn))
    sheet = front_sheet(found)
    sheet.write(folder)
    page.table(sheet)


def front_sheet(found: Comparison) -> Sheet:
    """The points of each front; a setting of several seeds with its mean and deviation."""
    points = [(name, point) for name, own in zip(found.names, found.fronts, strict=True) for point in own]
    rows = tuple((name, p.trial_id, p.name, p.params, p.error, p.spread, p.seeds) for name, p in points)
    return Sheet(
        name="fronts", rows=rows,
        columns=("study", "trial_id", "setting", "params", "val_error", "standard_deviation", "seeds"),
        words=tuple((name, p.name, f"{p.params:,}", error_words(p), p.trial_id) for name, p in points),
        headings=("study", "setting", "parameters", "error", "trial"),
    )  # fmt: skip


def _volumes(page: Page, found: Comparison, folder: Path) -> None:
    page.section("Hypervolume at equal cost")
    point = found.reference
    page.text(
        f"Error and log10 of parameters, both minimised, against one reference point: {point.params:,.0f} "
        f"parameters and {point.error:g} %. Points beyond it are dropped. The unit is points of error times decades of "
        "parameters. Each trial of the search counts by its own error: further seeds came after it.",
        "note",
    )
    if found.same_data and any(each.steps for each in found.growths):
        caption = f"Hypervolume over {found.unit} of training; the dashed line is the cost that all of them spent."
        draw = partial(draw_growth, unit=found.unit)
        page.picture(Order(name="hypervolume", caption=caption, draw=draw, data=found.growths, height=4.6, narrow=4.2))
    sheet = volume_sheet(found)
    sheet.write(folder)
    page.table(sheet)


def volume_sheet(found: Comparison) -> Sheet:
    """Hypervolume at equal cost and at the end of each study."""
    rows = tuple((g.study, g.at(found.equal_cost), g.at(g.cost), g.cost, len(g.steps)) for g in found.growths)
    words = tuple(
        (name, f"{equal:.3f}", f"{whole:.3f}", f"{cost:,.0f}", f"{steps:,}") for name, equal, whole, cost, steps in rows
    )
    return Sheet(
        name="hypervolume", columns=("study", "at_equal_cost", "at_its_end", f"{found.unit}", "completed"), rows=rows,
        words=words, headings=("study", "at equal cost", "at its end", f"cost in {found.unit}", "completed trials"),
    )  # fmt: skip


def _differences(page: Page, found: Comparison, folder: Path) -> None:
    page.section("What differs")
    columns = ("field", *found.names)
    rows = tuple((each.field, *each.values) for each in found.fields)
    words = tuple(
        (each.field, *("" if value is None else str(value) for value in each.values)) for each in found.fields
    )
    settings = Sheet(name="fields", columns=columns, rows=rows, words=words)
    settings.write(folder)
    page.heading("Settings")
    if rows:
        page.table(settings)
    else:
        page.text("None: the questions are the same.")
    page.heading("Trials")
    trials = trial_sheet(found)
    trials.write(folder)
    if trials.words:
        page.table(trials)
    else:
        page.text("None: every trial is in all studies and came out the same.")


def trial_sheet(found: Comparison) -> Sheet:
    """Every trial for CSV; for readers those that differ or are not in all."""
    columns = ("trial_id", "setting", "kind", *(f"{what}_{n}" for n in found.names for what in ("status", "val_error")))
    rows = tuple(
        (t.trial_id, t.setting, t.kind, *(v for pair in zip(t.statuses, t.errors, strict=True) for v in pair))
        for t in found.trials
    )
    words = tuple(
        (t.setting, t.kind, *(_outcome(s, e) for s, e in zip(t.statuses, t.errors, strict=True)), t.trial_id)
        for t in found.trials
        if t.kind != "same"
    )
    headings = ("setting", "what", *found.names, "trial")
    return Sheet(name="trials", columns=columns, rows=rows, words=words, headings=headings)


def _outcome(status: str, error: float | None) -> str:
    words = status.replace("_", " ")
    return f"{error:.2f} %, {words}" if error is not None else words or "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="+", metavar="STUDY", help="two studies or more: names or folders")
    add_stores(parser)
    parser.add_argument("--cost", choices=UNITS, default="seconds", help="what is made equal (default: seconds)")
    parser.add_argument("--reference", metavar="PARAMS,ERROR", help="default: the separable size and guessing")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: studies/{FOLDER}/A_B")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the comparison and print its answer; raises InputError."""
    if len(arguments.names) < 2:
        raise InputError(f"a comparison needs two studies or more, but got {len(arguments.names)}")
    reference = parse_reference(arguments.reference) if arguments.reference else None
    with steps("compare", len(arguments.names) + 1) as step:
        studies = []
        for name in arguments.names:
            step(name)
            studies.append(load_named(name, arguments, step.detail))
        step("page")
        _tell_apart(studies, arguments.names)
        found = compare(studies, arguments.cost, reference)
        default = arguments.studies / FOLDER / "_".join(found.names).replace("/", "-")
        page = write_comparison(found, output_folder(arguments.out or default))
    print("\n".join([*found.sentences(), "", f"{page}: fronts, hypervolume and trials, pictures and tables beside it"]))
    if arguments.open:
        open_page(page)
    return 0


def _tell_apart(studies: Sequence[StudyRecord], given: Sequence[str]) -> None:
    """Two studies of one name in two folders are called by their folders."""
    if len({study.name for study in studies}) < len(studies):
        for study, name in zip(studies, given, strict=True):
            study.header = {**study.header, "name": name}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    return run_script("compare", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
