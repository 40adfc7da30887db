"""What several studies found, side by side: their fronts, their settings and their trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.findings.study_diff import FieldDifference, TrialDifference, field_differences, trial_differences
from analysis.stats import (
    BestDifference,
    FrontComparison,
    HypervolumeGrowth,
    MixedField,
    ReferencePoint,
    best_differences,
    compare_fronts,
    differing_fields,
    mixed_text,
    pairing_sentence,
)
from analysis.utils import format_points_interval
from sweeps.records import StudyRecord

SHOWN_BESTS = 3  # in the sentences; the table has all


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """Studies side by side.

    Attributes:
        fronts: their fronts and hypervolumes.
        mixed: what makes their errors unequal.
        bests: the best of each study within each budget against that of the first study, the surest first; empty for
            studies of different data.
        fields: the settings in which the studies differ, with the value in each.
        trials: every trial that any of the studies has, with its outcome in each.
    """

    fronts: FrontComparison
    bests: tuple[BestDifference, ...]
    fields: tuple[FieldDifference, ...]
    mixed: tuple[MixedField, ...]
    trials: tuple[TrialDifference, ...]

    def sentences(self) -> list[str]:
        """Return the comparison as a list of sentences; the study with the largest hypervolume comes first."""
        fronts = self.fronts
        if fronts.empty:
            return [f"There is nothing to compare: {', '.join(fronts.empty)} completed no trial."]
        if not fronts.same_data:
            return ["The studies are on different data or splits: their errors cannot be compared, only their trials."]
        cost = f"{fronts.equal_cost:,.0f} {'s of training' if fronts.unit == 'seconds' else 'epochs'}"
        ranked = sorted(fronts.growths, key=lambda growth: -growth.at(fronts.equal_cost))
        volumes = "; ".join(_volume_text(growth, fronts.equal_cost) for growth in ranked)
        counts = Counter(trial.kind for trial in self.trials)
        mark, single = mixed_text(self.mixed), "One search each: without repeated searches there is no interval."
        return [
            *([mark] * bool(mark)),
            f"After the same cost, {cost}, the hypervolumes are: {volumes} (higher is better). {single}",
            *([fronts.cost_note] * bool(fronts.cost_note)),
            *([self._bests_sentence()] * bool(self.bests)),
            f"Trials: {counts['same']:,} the same in all, {counts['differs']:,} that came out differently, "
            f"{counts['not in all']:,} not in all.",
        ]

    @property
    def pairing(self) -> str:
        """Whether the differences of the best are on the same images, in one sentence."""
        return pairing_sentence(sum(row.same_images for row in self.bests), len(self.bests))

    @property
    def choice(self) -> str:
        """Whether verdicts are corrected for having chosen the best, in one sentence; "" where nobody chose."""
        chosen, ignoring = sum(row.has_choice for row in self.bests), sum(row.ignores_choice for row in self.bests)
        if not chosen:
            return ""
        if not ignoring:
            return "Verdicts are corrected for the choice of the best in each study."
        which = "No verdict is" if ignoring == chosen else f"{ignoring} of {chosen} verdicts are not"
        return (
            f"{which} corrected for the choice of the best in each study, because the records do not say which images "
            "were wrong: the study that tried more settings has an advantage."
        )

    def _bests_sentence(self) -> str:
        clauses = [_best_text(row) for row in self.bests[:SHOWN_BESTS]]
        number = len(self.bests)
        shown = f", the first {SHOWN_BESTS} of {number}" if number > SHOWN_BESTS else ""
        corrected = f", corrected for {number} comparisons" if number > 1 else ""
        parts = [f"The best within a budget{shown}{corrected}: {'; '.join(clauses)}.", self.pairing, self.choice]
        return " ".join(part for part in parts if part)


def _best_text(row: BestDifference) -> str:
    """The difference as measured, then corrected for the choice where there was one."""
    text = f"{row.budget}: {row.study} {format_points_interval(row.gap)} points against {row.base_study}, "
    if row.selected is not None:
        text += f"corrected for the choice {format_points_interval(row.selected)}, "
    return f"{text}{row.verdict}"


def _volume_text(growth: HypervolumeGrowth, cost: float) -> str:
    completed = any(cost_so_far <= cost for cost_so_far, _ in growth.steps)
    return f"{growth.study} {growth.at(cost):.2f}" + ("" if completed else " (no trial was completed by then)")


def compare_studies(
    studies: Sequence[StudyRecord], unit: str | None = None, reference: ReferencePoint | None = None
) -> StudyComparison:
    """Compare the fronts, settings and trials of studies.

    Args:
        studies: two or more.
        unit: what cost is measured in, `seconds` of training or `epochs`; None: seconds where all studies were trained
            on like machines, else epochs.
        reference: the corner (parameters, error) up to which hypervolumes are measured; None for the one that all
            studies share.

    Returns:
        The comparison.

    Raises:
        InputError: the studies share no reference point and none was given, their costs are not on record, or a record
            of wrong images is damaged.
    """
    fronts = compare_fronts(studies, unit, reference)
    return StudyComparison(
        fronts=fronts,
        bests=tuple(best_differences(studies)) if fronts.same_data else (),
        fields=tuple(field_differences(studies)),
        mixed=tuple(differing_fields(studies)),
        trials=tuple(trial_differences(studies)),
    )
