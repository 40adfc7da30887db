"""What several studies found, side by side: their fronts, their settings and their trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.findings.study_diff import FieldDifference, TrialDifference, field_differences, trial_differences
from analysis.stats import FrontComparison, HypervolumeGrowth, ReferencePoint, compare_fronts
from sweeps.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """Studies side by side.

    Attributes:
        fronts: their fronts and hypervolumes.
        fields: the settings in which they differ.
        trials: every trial of any of them, with its outcome in each.
    """

    fronts: FrontComparison
    fields: tuple[FieldDifference, ...]
    trials: tuple[TrialDifference, ...]

    def sentences(self) -> list[str]:
        """Return the comparison in words, one sentence an entry."""
        fronts = self.fronts
        if not fronts.same_data:
            return ["The studies are on different data or splits: their errors cannot be compared, only their trials."]
        cost = f"{fronts.equal_cost:,.0f} {'s of training' if fronts.unit == 'seconds' else 'epochs'}"
        ranked = sorted(fronts.growths, key=lambda growth: -growth.at(fronts.equal_cost))
        volumes = "; ".join(_volume(growth, fronts.equal_cost) for growth in ranked)
        counts = Counter(trial.kind for trial in self.trials)
        return [
            f"After the same cost, {cost}, the hypervolumes are: {volumes} (higher is better).",
            f"{counts['same']:,} trials are the same in all, {counts['differs']:,} came out differently, "
            f"{counts['not in all']:,} are not in all.",
        ]


def _volume(growth: HypervolumeGrowth, cost: float) -> str:
    completed = any(spent <= cost for spent, _ in growth.steps)
    return f"{growth.study} {growth.at(cost):.2f}" + ("" if completed else " (no trial was completed by then)")


def compare_studies(
    studies: Sequence[StudyRecord], unit: str = "seconds", reference: ReferencePoint | None = None
) -> StudyComparison:
    """Compare studies.

    Args:
        studies: two or more.
        unit: of cost, `seconds` or `epochs`.
        reference: the point that bounds every hypervolume; None for the one that all studies share.

    Returns:
        The comparison.

    Raises:
        InputError: the studies' networks differ in size and no reference was given, or costs are not on record.
    """
    return StudyComparison(
        fronts=compare_fronts(studies, unit, reference),
        fields=tuple(field_differences(studies)),
        trials=tuple(trial_differences(studies)),
    )
