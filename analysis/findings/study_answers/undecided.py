"""Which neighbours on the front a study cannot tell apart, how many more seeds would, and what those would cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from analysis.findings.cost import study_cost
from analysis.findings.study_answers.certainty import Evidence, compare_points
from analysis.stats import (
    ALARM_LEVEL,
    Estimate,
    FrontPoint,
    count_compared,
    errors_by_seed,
    holm_p_values,
    image_p_value,
    newcombe_interval,
    paired_difference,
    pareto_front,
    t_test_p_value,
)
from analysis.utils import format_duration, format_points
from lowrank.utils import format_counted
from sweeps.records import StudyRecord, decidable_difference

MAX_MORE_SEEDS = 20  # beyond it other settings or more images are the better buy
SHOWN_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Two neighbours on the front.

    Attributes:
        smaller: the one with fewer parameters, and the higher error.
        larger: the other one.
        gap: error of the larger less that of the smaller, in points.
        p_value: of "no difference"; None where nothing gives one.
        corrected: the same, corrected for all neighbours of the front.
        discordance: images on which one of the two is wrong alone, as a share of their mean error.
    """

    smaller: FrontPoint
    larger: FrontPoint
    gap: Estimate
    p_value: float | None
    corrected: float | None = None
    discordance: float = 1.0

    @property
    def told_apart(self) -> bool:
        """Whether the difference is beyond noise, corrected for the number of neighbours."""
        return self.corrected is not None and self.corrected <= ALARM_LEVEL


def front_neighbours(points: Sequence[FrontPoint], evidence: Evidence) -> list[Neighbours]:
    """Compare each point of the front with the next larger one.

    Args:
        points: of a study.
        evidence: of the study.

    Returns:
        One entry for each two neighbours, the smallest first.
    """
    seeds = errors_by_seed(points)
    pairs = []
    for smaller, larger in pairwise(pareto_front(points)):
        paired = compare_points(larger, smaller, evidence)
        if paired is not None:
            share = 100 * paired.discordant / max(1e-9, (smaller.error + larger.error) / 2)
            pairs.append(Neighbours(
                smaller=smaller, larger=larger, gap=paired.estimate, p_value=paired.p_value, discordance=share,
            ))  # fmt: skip
            continue
        over_seeds = paired_difference(seeds.get(larger.setting, {}), seeds.get(smaller.setting, {}))
        p_values = [] if over_seeds is None else [t_test_p_value(over_seeds)]
        gap = over_seeds or Estimate(mean=larger.error - smaller.error, low=None, high=None, count=1)
        if evidence.images is not None:  # neither the seeds nor the images may explain it
            p_values.append(image_p_value(larger.error, smaller.error, evidence.images))
            low, high = newcombe_interval(larger.error, smaller.error, evidence.images)
            gap = gap if over_seeds else replace(gap, low=low, high=high)
        pairs.append(Neighbours(smaller=smaller, larger=larger, gap=gap, p_value=max(p_values, default=None)))
    corrected = holm_p_values([pair.p_value for pair in pairs])
    return [replace(pair, corrected=p_value) for pair, p_value in zip(pairs, corrected, strict=True)]


def seeds_to_tell(pair: Neighbours, evidence: Evidence) -> int | None:
    """Return how many more seeds would tell two neighbours apart, if they differ as much as was measured.

    Args:
        pair: that the study cannot tell apart.
        evidence: of the study.

    Returns:
        The number with which four of five studies would; None where `MAX_MORE_SEEDS` are not enough, or the number of
        images is not known. As long as every setting has one seed, seeds are taken not to differ.
    """
    if evidence.images is None:
        return None
    error = (pair.smaller.error + pair.larger.error) / 2
    deviation = evidence.seeds.deviation if evidence.seeds else None
    before = min(pair.smaller.seeds, pair.larger.seeds)
    for more in range(1, MAX_MORE_SEEDS + 1):
        decides = decidable_difference(evidence.images, before + more, error, deviation, pair.discordance)
        if decides <= abs(pair.gap.mean):
            return more
    return None


def undecided_sentence(study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence) -> str:
    """Say which neighbours on the front cannot be told apart, and what would tell.

    Args:
        study: the records.
        points: of all its trials, as `collect_points` returns them.
        evidence: of the study.

    Returns:
        Two or three sentences; "" where the front has fewer than two points.
    """
    pairs = front_neighbours(points, evidence)
    if not pairs:
        return ""
    number = count_compared([pair.p_value for pair in pairs])
    corrected = f"corrected for {number} comparisons, not" if number > 1 else "not corrected"
    corrected = f" ({corrected} for the choice of these points)"
    undecided = [pair for pair in pairs if not pair.told_apart]
    if not undecided:
        neighbours = "All neighbours" if len(pairs) > 1 else "The two points"
        return f"{neighbours} on the front are beyond noise of each other{corrected}."
    shown = "; ".join(_pair_text(pair) for pair in undecided[:SHOWN_NEIGHBOURS])
    others = f"; and {len(undecided) - SHOWN_NEIGHBOURS} more" if len(undecided) > SHOWN_NEIGHBOURS else ""
    neighbours = f"Of {len(pairs)} pairs of neighbours on the front {len(undecided)}"
    if len(pairs) == 1:
        neighbours = "The two points on the front"
    text = f"{neighbours} cannot be told apart{corrected}: {shown}{others}."
    needed = [(more, pair) for pair in undecided if (more := seeds_to_tell(pair, evidence)) is not None]
    if not needed:
        return f"{text} {_no_seeds(evidence)}"
    more, pair = min(needed, key=lambda entry: entry[0])
    seeds = format_counted(more, "more seed")
    assumption = "" if evidence.seeds else ", and if seeds do not differ"
    cost = _cost_text(study, points, evidence, more)
    specification = next((spec for trial in study.trials.values() if (spec := trial.specification)), None)
    permissions = "" if specification is None else specification.permission_options()
    command = f"python sweeps/run.py --resume {shlex.quote(study.name)} --repeat-more {more}{permissions}"
    return (
        f"{text} {seeds} would tell {_sizes(pair)} apart in 4 of 5 studies, if they differ as much as "
        f"measured{assumption}: `{command}`{cost}."
    )


def _no_seeds(evidence: Evidence) -> str:
    if evidence.images is None:
        return "How many more seeds would tell is not known: the records do not say how many images there are."
    return (
        f"{MAX_MORE_SEEDS} more seeds on these {evidence.images:,} images would not tell them apart, if they differ as "
        "little as measured."
    )


def _pair_text(pair: Neighbours) -> str:
    gap = pair.gap
    text = f"{_sizes(pair)}, {format_points(gap.mean)} points"
    if gap.low is None or gap.high is None:
        return text
    return f"{text} (95 % interval {format_points(gap.low)} to {format_points(gap.high)})"


def _sizes(pair: Neighbours) -> str:
    """E.g. `CP, 2 dims (1,000 parameters) and shuffle (2,000)`."""
    return f"{pair.smaller.name} ({pair.smaller.params:,} parameters) and {pair.larger.name} ({pair.larger.params:,})"


def _cost_text(study: StudyRecord, points: Sequence[FrontPoint], evidence: Evidence, more: int) -> str:
    """What so many further seeds cost: of each point of the front, or of a grid each setting."""
    repeated = pareto_front(points) if evidence.screened else [point for point in points if point.eligible]
    settings = {point.setting for point in repeated}
    ids = {point.trial_id for point in points if point.setting in settings and point.finished}
    trials = {trial_id: trial for trial_id, trial in study.trials.items() if trial_id in ids and not trial.adopted}
    if not trials:
        return ""
    cost = study_cost(replace(study, trials=trials))
    factor = more * len(settings) / len(trials)
    of_all = f"{more * len(settings):,} trainings"
    if cost.gpu_hours:
        return f", {of_all}, about {factor * cost.gpu_hours:.2g} card hours"
    seconds = factor * (cost.train_seconds + cost.start_seconds)
    return f", {of_all}, about {format_duration(seconds)} of training" if seconds else f", {of_all}"
