"""Every value of one searched field against one of them, paired by seed.

Trials are paired that agree in the seed, in every searched field but the one, and in everything else that was not
searched (network, epochs, recipe, data, start), as far as it does not come with the field's value. Where the records
say which images were wrong, a difference is on the same images: of one seed it compares the two networks (Tango's
interval), of several the values (over seeds and images). Elsewhere it is over seeds, with a t-interval. Intervals are
two-sided 95 %, each by itself; verdicts are corrected for the number of differences (Holm). Errors are on validation
images, in percent, differences in points.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.stats.equal_size import ErrorsBySeed, sizes_equal
from analysis.stats.factors import FactorValues, factor_values, shared_factors, varying_factors
from analysis.stats.front import SizeMeasure, validation_images
from analysis.stats.inference.intervals import Estimate, error_interval, image_p_value, t_interval, t_test_p_value
from analysis.stats.inference.multiple import correction_sentence, count_compared, describe_verdict, holm_p_values
from analysis.stats.inference.paired import SeedVariance
from analysis.stats.seeds import mean_by_seed
from analysis.stats.wrong_images import (
    WrongBySeed,
    pairing_sentence,
    pooled_seed_variance,
    same_images_difference,
    wrong_by_setting,
)
from analysis.utils import format_error_interval, format_points_interval
from lowrank.errors import unknown
from lowrank.utils import format_counted
from sweeps.records import Role, Status, StudyRecord, TrialRecord, wrong_images

HEADINGS = ("all else", "", "parameters", "mult-adds", "error", "difference", "verdict", "seeds")


@dataclass(frozen=True, kw_only=True)
class ValueComparison:
    """One value of the field, all else equal.

    Attributes:
        other_fields: the other searched fields, in words.
        value: of the field.
        params: parameters.
        mult_adds: for one image; None where the record has none.
        error: mean over seeds, in percent.
        gap: `error` less that of the base over the seeds of both, in points; None for the base itself and where the two
            share no seed. With one shared seed it has an interval only if it is on the same images.
        same_images: whether `gap` is on the same images.
        measure: of size, the one that the budget limits.
        as_large: whether it is as large as the base in that measure.
        is_base: whether it is the value that the others are compared with.
        p_value: of "no difference"; None for the base, and where the gap has no interval.
        corrected: the same, corrected for the number of differences.
        comparisons: that number.
    """

    other_fields: str
    value: str
    params: int
    mult_adds: int | None
    error: Estimate
    gap: Estimate | None
    same_images: bool
    measure: SizeMeasure
    as_large: bool
    is_base: bool = False
    p_value: float | None = None
    corrected: float | None = None
    comparisons: int = 1

    @property
    def verdict(self) -> str:
        """In words, after the correction for the number of differences."""
        if self.is_base:
            return "base"
        if self.gap is None:
            return "no seed of both"
        words = describe_verdict(self.gap, self.p_value, self.corrected, self.comparisons, "one seed: no interval")
        one_seed = ", of one seed" if self.gap.count == 1 else ""  # another seed may turn it
        return f"{words}{one_seed}" if words in ("better", "worse") else words


def compare_values(study: StudyRecord, field: str, base: str) -> list[ValueComparison]:
    """Compare every value of a field with one of them, all other fields equal.

    Args:
        study: the records.
        field: dotted name of a searched field.
        base: the value that the others are compared with, strings as they are, others as JSON.

    Returns:
        For each setting of the other fields the base first, then the others by error.

    Raises:
        InputError: no trial searched the field, none had that value, or a record of wrong images is damaged.
    """
    trials = _finished(study)
    values = {_shown(trial.parameters[field]) for trial in trials if field in trial.parameters}
    if not values:
        raise unknown("searched field", field, {name for trial in trials for name in trial.parameters})
    if base not in values:
        raise unknown(f"value of {field}", base, values)
    groups: dict[str, dict[str, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    unsearched = _unsearched_factors(trials, field)
    for trial in trials:
        if field in trial.parameters:
            groups[_rest(trial, field, unsearched)][_shown(trial.parameters[field])].append(trial)
    evidence = _evidence(study, trials)
    rows = [
        row
        for other_fields, group in sorted(groups.items())
        if base in group
        for row in _rows(other_fields, group, base, evidence)
    ]
    corrected = holm_p_values([row.p_value for row in rows])
    count = count_compared(corrected)
    return [replace(row, corrected=p_value, comparisons=count) for row, p_value in zip(rows, corrected, strict=True)]


@dataclass(frozen=True)
class _Evidence:
    """What a study has on record of its images."""

    images: int | None
    wrong: Mapping[str, NDArray[np.bool_]]  # by trial
    between_seeds: SeedVariance | None

    def of_seeds(self, trials: Sequence[TrialRecord]) -> WrongBySeed:
        """The wrong images of each seed; none where two trials share a seed, whose mean no bits can show."""
        by_seed = {_seed(trial): self.wrong[trial.trial_id] for trial in trials if trial.trial_id in self.wrong}
        return by_seed if len(by_seed) == len(trials) else {}


def _evidence(study: StudyRecord, trials: Sequence[TrialRecord]) -> _Evidence:
    ids = dict.fromkeys(trial.trial_id for trial in trials)
    wrong = {trial_id: bits for trial_id in ids if (bits := wrong_images(study, trial_id)) is not None}
    between_seeds = pooled_seed_variance(wrong_by_setting(study).values()) if wrong else None
    return _Evidence(validation_images(study), wrong, between_seeds)


def _finished(study: StudyRecord) -> list[TrialRecord]:
    """Trials of the search and their repeats; one that several rows of a grid led to counts for each of them."""
    completed = [t for t in study.trials.values() if t.status is Status.COMPLETED and t.val_error is not None]
    sound = [trial for trial in completed if trial.role is not Role.REFERENCE and not trial.broken]
    return [replace(trial, parameters=row) for trial in sound for row in (trial.parameters, *trial.aliases)]


def _rest(trial: TrialRecord, field: str, unsearched: Sequence[str]) -> str:
    """All but the field in which trials can differ, in words: searched fields, then what no space has searched."""
    searched = [f"{name} {_shown(value)}" for name, value in sorted(trial.parameters.items()) if name != field]
    values = factor_values(trial)
    return ", ".join([*searched, *(f"{name} {_shown(json.loads(values.get(name, 'null')))}" for name in unsearched)])


def _unsearched_factors(trials: Sequence[TrialRecord], field: str) -> list[str]:
    """Factors that differ between trials of equal searched fields, as in studies that were put together."""
    searched = frozenset(name for trial in trials for name in trial.parameters)
    groups: dict[str, list[FactorValues]] = defaultdict(list)
    for trial in trials:
        groups[json.dumps(trial.parameters, sort_keys=True)].append(factor_values(trial))
    varying = {name for group in groups.values() for name in varying_factors(group)} - searched
    return [name for name in shared_factors(field, sorted(varying), searched) if name != field]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rows(
    other_fields: str, group: Mapping[str, Sequence[TrialRecord]], base: str, evidence: _Evidence
) -> list[ValueComparison]:
    comparisons = [_row(other_fields, value, group[value], group[base], value == base, evidence) for value in group]
    return sorted(comparisons, key=lambda row: (row.gap is not None, row.error.mean))


def _row(
    other_fields: str, value: str, trials: Sequence[TrialRecord], base: Sequence[TrialRecord], is_base: bool,
    evidence: _Evidence,
) -> ValueComparison:  # fmt: skip
    seeds, base_seeds = _by_seed(trials), _by_seed(base)
    shared = [] if is_base else [seed for seed in seeds if seed in base_seeds]
    gap = t_interval([seeds[seed] - base_seeds[seed] for seed in shared]) if shared else None
    paired = same_images_difference(evidence.of_seeds(trials), evidence.of_seeds(base), evidence.between_seeds)
    same_images = gap is not None and paired is not None
    p_value = None
    if gap is not None and paired is not None:
        gap, p_value = paired.estimate, paired.p_value
    elif gap is not None and gap.beyond_noise is not None:
        p_value = t_test_p_value(gap)
        if evidence.images is not None:  # neither the seeds nor the images may explain it
            by_images = image_p_value(fmean(seeds.values()), fmean(base_seeds.values()), evidence.images)
            p_value = max(p_value, by_images)
    counts = trials[0].counts
    measure: SizeMeasure = "mult_adds" if "budget.mult_adds" in trials[0].parameters else "params"
    return ValueComparison(
        other_fields=other_fields, value=value, params=counts["params"], mult_adds=counts.get("mult_adds"),
        error=error_interval(list(seeds.values())), gap=gap, same_images=same_images, measure=measure,
        as_large=sizes_equal(counts[measure], base[0].counts[measure]), is_base=is_base, p_value=p_value,
    )  # fmt: skip


def _by_seed(trials: Sequence[TrialRecord]) -> ErrorsBySeed:
    return mean_by_seed((trial.seed, trial.val_error or 0.0) for trial in trials)


def _seed(trial: TrialRecord) -> int:
    return trial.seed or 0


def comparison_table(rows: Sequence[ValueComparison]) -> str:
    """Return the comparison as a Markdown table.

    Args:
        rows: of `compare_values`.

    Returns:
        The table, and below it whether differences are on the same images and for how many verdicts are corrected; a
        size over 1 % from that of the base is marked with a star.
    """
    lines = [HEADINGS, tuple("---" for _ in HEADINGS)]
    for row in rows:
        marks = {row.measure: "" if row.as_large else " *"}
        mult_adds = "" if row.mult_adds is None else f"{row.mult_adds:,}"
        lines.append((
            row.other_fields, row.value, f"{row.params:,}{marks.get('params', '')}",
            f"{mult_adds}{marks.get('mult_adds', '')}", format_error_interval(row.error), _gap_text(row), row.verdict,
            str(row.error.count),
        ))  # fmt: skip
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    marked = any(not row.as_large for row in rows)
    gaps = [row for row in rows if row.gap is not None]
    pairing = pairing_sentence(sum(row.same_images for row in gaps), len(gaps))
    corrected = correction_sentence(max((row.comparisons for row in gaps), default=0))
    star = "\\* over 1 % larger or smaller than the base" if marked else ""
    return "\n\n".join(part for part in (text, " ".join(filter(None, (pairing, corrected))), star) if part)


def _gap_text(row: ValueComparison) -> str:
    """The difference; over which seeds, where the error beside it is over more."""
    text = format_points_interval(row.gap)
    if row.gap is None or row.gap.count == row.error.count:
        return text
    return f"{text}, over {row.gap.count} of the seeds"


def reference_lines(study: StudyRecord) -> list[str]:
    """Return the mean error of each reference network, one line an entry.

    Args:
        study: the records.

    Returns:
        E.g. `reference: separable, 750,000 parameters, 5.23 % (5.01 to 5.45), 3 seeds`.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for trial in study.trials.values():
        completed = trial.status is Status.COMPLETED and trial.val_error is not None
        if trial.role is Role.REFERENCE and not trial.broken and completed:
            groups[f"{trial.method}, {trial.counts['params']:,} parameters"].append(trial.val_error or 0.0)
    return [
        f"reference: {label}, {format_error_interval(error_interval(errors))}, {format_counted(len(errors), 'seed')}"
        for label, errors in groups.items()
    ]
