"""The trials of a study as points of error and size: the Pareto front, and the best point of each budget.

Only trials that trained to their end are eligible: the error of a stopped trial is that of fewer epochs. All errors are
top-1 errors on the validation images, in percent; sizes are plain counts; both are minimised. A setting that was
trained with several seeds is one point: its first sound trial represents it, with the mean error over its seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

from analysis.stats.conditions import mixed_fields, mixed_words
from analysis.utils import format_percent, method_label
from sweeps.records import (
    BALANCED_ERROR,
    ITSELF,
    Role,
    Status,
    StudyRecord,
    TrialRecord,
    TrialSpec,
    competing_points,
    completed_trials,
    group_by_point,
    mean_error,
    non_dominated_points,
    point_key,
    start_kind,
)

SEPARABLE, DENSE = "separable", "dense"
UNCHANGED = "unchanged"  # the trained network that a study starts from, as it is
STARTS = {"scratch": "", "dense": "from dense", "outputs": "fitted to outputs", "in_order": "fitted in order",
          "in_order_relu": "fitted in order through the ReLU"}  # fmt: skip
LOST_LABELS = {
    Status.STOPPED: "stopped early", Status.DIVERGED: "diverged", Status.FAILED: "failed",
    Status.OUT_OF_MEMORY: "ran out of memory",
}  # fmt: skip
SizeMeasure = Literal["params", "mult_adds"]
ShareBase = Literal["separable", "dense"]  # of whose parameters a size is a share


BALANCED_SHOWN = 0.5  # points between the error and the balanced one, from which on both are shown


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One trained network. The names of the fields are those of the CSV tables.

    `ratio` is its parameters over those of the separable network (1 is as large).
    """

    trial_id: str
    role: Role
    stratum: str
    method: str
    params: int
    status: Status
    dims: int | None = None
    rank_scale: float | None = None
    mult_adds: int | None = None
    ratio: float | None = None
    dense_ratio: float | None = None  # its parameters over those of the network that it replaces
    val_error: float | None = None
    balanced_error: float | None = None  # mean over classes of the validation error (percent) on their images
    test_error: float | None = None
    weight_decay: float | None = None
    scaled_decay: bool | None = None
    seed: int | None = None
    seeds: int = 1  # how many completed trials differ in nothing but the seed
    mean_error: float | None = None  # over those
    spread: float | None = None  # sample standard deviation over those, in points; None for one seed
    leads: bool = True  # whether it stands for all of them
    competes: bool = True  # False where the front was repeated and it has fewer seeds than the front's points
    epochs: int = 0
    total_epochs: int | None = None  # with those of the network it starts from; None where they are not on record
    initial_error: float | None = None  # validation error (percent) before any training, after a start from weights
    start: str = "scratch"
    teacher: str = ""  # its name; empty without one
    reason: str = ""
    aliases: int = 0
    width: float = 1.0  # of the network, 1 as published
    whole_width: float = 1.0  # of the study's own network, that nobody made thinner
    extras: tuple[str, ...] = ()  # what else sets it apart, in words: a teacher, an allocation, a start
    lost: str = ""  # of several seeds those without a result, in words
    host: str | None = None  # of the last attempt, as the device
    device: str | None = None
    setting: str = ""  # what is trained, without the seed: repeats share it

    @property
    def eligible(self) -> bool:
        """Whether the search may try it again: trained to its end, no reference, not a further seed of another."""
        return self.role is Role.SEARCH and self.finished and self.leads

    @property
    def finished(self) -> bool:
        """Whether it trained to its end and was measured."""
        return self.status is Status.COMPLETED and self.val_error is not None

    @property
    def own_error(self) -> float:
        """The validation error (percent) of this finished trial alone; raises ValueError for any other."""
        if self.val_error is None:
            raise ValueError(f"trial {self.trial_id} has no validation error: it is {self.status}")
        return self.val_error

    @property
    def error(self) -> float:
        """The validation error (percent) of a finished point, the mean over its seeds; raises as `own_error`."""
        return self.own_error if self.mean_error is None else self.mean_error

    @property
    def balanced_apart(self) -> float | None:
        """The balanced error where it differs from the error by BALANCED_SHOWN points or more; else None."""
        error = self.val_error if self.mean_error is None else self.mean_error
        if error is None or self.balanced_error is None or abs(self.balanced_error - error) < BALANCED_SHOWN:
            return None
        return self.balanced_error

    @property
    def is_thin(self) -> bool:
        """Whether it is the network itself, made thinner, rather than a substitution."""
        return self.method.startswith("thin_") or (self.role is Role.REFERENCE and self.width < self.whole_width)

    @property
    def form(self) -> str:
        """The method in words, the width with it where it is not the study's own, e.g. `separable, width 0.5`."""
        label = method_label(self.method)
        return label if self.width == self.whole_width else f"{label}, width {self.width:.3g}"

    def share_of(self, base: ShareBase) -> float | None:
        """Return its parameters over those of the dense or the separable network (None where they are not known)."""
        return self.dense_ratio if base == DENSE else self.ratio

    def size(self, measure: SizeMeasure) -> int | None:
        """Return parameters, or mult-adds for one image (None where they are not known)."""
        return self.params if measure == "params" else self.mult_adds

    @property
    def name(self) -> str:
        """The setting in words, e.g. `tensor train, 3 dims, rank scale 0.31`."""
        parts = [self.form]
        if self.dims is not None:
            parts.append(f"{self.dims} dims")
        if self.rank_scale is not None:
            parts.append(f"rank scale {self.rank_scale:.3g}")
        return ", ".join((*parts, *self.extras))

    @property
    def untrained_name(self) -> str:
        """The setting in words before any training, which knows no teacher yet."""
        taught = taught_by(self.teacher)
        return replace(self, extras=tuple(extra for extra in self.extras if extra != taught)).name

    @property
    def description(self) -> str:
        """Name, size and error of a finished point, e.g. `CP, 2 dims with 1,000 parameters (2.08 %)`."""
        # Without the comma, "taught by the trained network with 1,000 parameters" would be the size of the teacher
        comma = "," if self.extras else ""
        return f"{self.name}{comma} with {self.params:,} parameters ({format_percent(self.error)})"


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A budget of the study; None means no limit."""

    label: str
    params: int | None = None
    unlimited: bool = False  # holds everything; without this and without `params` the limit is known by its label only
    unreachable: str = ""  # why no method of the study can meet it

    def holds(self, point: FrontPoint) -> bool:
        """Return whether a point fits into the budget.

        Anything smaller than the budget does, whichever budget it was proposed for.
        """
        if self.params is not None:
            return point.params <= self.params
        return self.unlimited or point.stratum == self.label


def collect_points(study: StudyRecord) -> list[FrontPoint]:
    """Return every trial whose size is known, however it ended.

    Args:
        study: the records.

    Returns:
        The points by size, then by error. Infeasible settings and trials that are marked as broken are left out.
    """
    sized = [trial for trial in study.trials.values() if "params" in trial.counts and not trial.broken]
    trials = [trial for trial in sized if trial.status is not Status.INFEASIBLE]
    competing = {trial.trial_id for seeds in competing_points(study.trials.values()) for trial in seeds}
    seeds_by_trial = {trial.trial_id: seeds for seeds in group_by_point(sized) for trial in seeds}
    lost, settings, mixed = _lost_seeds(trials), setting_ids(sized), mixed_fields(study)
    full_width = study.header.network.width
    points = [
        _point(
            trial,
            seeds_by_trial.get(trial.trial_id, []),
            lost.get(point_key(trial), ""),
            full_width,
            settings[trial.trial_id],
            competes=trial.trial_id in competing
            or trial.trial_id not in seeds_by_trial
            or trial.role is Role.REFERENCE,
        )
        for trial in trials
    ]
    if mixed:  # each name then says what the trial has of what differs
        points = [
            replace(point, extras=(*point.extras, *mixed_words(trial, mixed)))
            for point, trial in zip(points, trials, strict=True)
        ]
    return sorted(points, key=_by_size)


def split_common_extras(points: Sequence[FrontPoint]) -> tuple[list[FrontPoint], tuple[str, ...]]:
    """Leave out of names what all searched settings have in common.

    Args:
        points: of a study.

    Returns:
        The points with shorter names, and what was left out of them; nothing where there is one setting alone.
    """
    searched = [point for point in points if point.role is not Role.REFERENCE]
    if len({point.setting for point in searched}) < 2:
        return list(points), ()
    common = tuple(extra for extra in searched[0].extras if all(extra in point.extras for point in searched))
    short = [
        point if point.role is Role.REFERENCE
        else replace(point, extras=tuple(extra for extra in point.extras if extra not in common))
        for point in points
    ]  # fmt: skip
    return short, common


def _lost_seeds(trials: Iterable[TrialRecord]) -> dict[str, str]:
    """Point key -> which of its several seeds ended without a result, e.g. `1 of 3 seeds diverged`."""
    ends: dict[str, dict[int | None, Status]] = {}
    for trial in trials:
        if trial.status is Status.COMPLETED or trial.status in LOST_LABELS:
            ends.setdefault(point_key(trial), {})[trial.seed] = trial.status
    lost = {}
    for point, seeds in ends.items():
        counts = {status: list(seeds.values()).count(status) for status in LOST_LABELS}
        words = [f"{count} of {len(seeds)} seeds {LOST_LABELS[status]}" for status, count in counts.items() if count]
        if words and len(seeds) > 1:
            lost[point] = ", ".join(words)
    return lost


def _by_size(point: FrontPoint) -> tuple[int, bool, float]:
    """Equal points stay in the order of proposal: the front keeps the first of them."""
    error = point.val_error if point.mean_error is None else point.mean_error
    return point.params, error is None, error or 0.0


def pareto_front(points: Sequence[FrontPoint], measure: SizeMeasure = "params") -> list[FrontPoint]:
    """Return the points that no other beats in both size and error.

    Args:
        points: of a study; those that are not eligible, or have too few seeds to compete, are ignored.
        measure: of size; points without it are ignored.

    Returns:
        The front by size. Size and validation error are both minimised.
    """
    sized = [point for point in points if point.eligible and point.competes and point.size(measure) is not None]
    return non_dominated_points(sized, lambda point: (float(point.size(measure) or 0), point.error))


def study_strata(study: StudyRecord) -> list[Stratum]:
    """Return the budgets of a study.

    Args:
        study: the records.

    Returns:
        The budgets, smallest first, the unlimited one last; empty for a study without budgets.
    """
    entries = study.header.strata
    unlimited = sum(entry.params is None for entry in entries)
    budgets = [
        Stratum(
            label=e.label,
            params=_whole(e.params),
            unlimited=e.params is None and unlimited == 1,
            unreachable=e.unreachable,
        )
        for e in entries
    ]
    return sorted(budgets, key=lambda stratum: (stratum.params is None, stratum.params or 0))


def share_base(study: StudyRecord) -> ShareBase:
    """Return the network of whose parameters the sizes of a study are shares.

    Args:
        study: the records.

    Returns:
        `dense` where the budget is relative to it, else `separable`.
    """
    return "dense" if study.header.section("budget").get("relative_to") == DENSE else "separable"


def _whole(params: float | None) -> int | None:
    return None if params is None else int(params)


def best_point(points: Iterable[FrontPoint]) -> FrontPoint | None:
    """Return the point of the lowest validation error, of those with all their seeds.

    Args:
        points: to choose from.

    Returns:
        The point, of equal ones the smallest; None if none is eligible.
    """
    return _lowest(point for point in points if point.competes)


def _lowest(points: Iterable[FrontPoint]) -> FrontPoint | None:
    return min((p for p in points if p.eligible), key=lambda p: (p.error, p.params, p.trial_id), default=None)


def best_by_method(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Return the best eligible point of each method.

    A method that has no point with all its seeds is represented by its lowest single error.

    Args:
        points: to choose from.

    Returns:
        One point a method, lowest error first.
    """
    methods: dict[str, list[FrontPoint]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    winners = [best_point(group) or _lowest(group) for group in methods.values()]
    return sorted((winner for winner in winners if winner), key=lambda point: (point.error, point.params))


def trials_off_front(points: Sequence[FrontPoint]) -> set[str]:
    """Find the trials that were tested on the front and are no longer there.

    Args:
        points: of all trials of a study.

    Returns:
        Ids of the trials with a test error, references aside, whose setting is not on the front.
    """
    front = {point.setting for point in pareto_front(points)}
    tested = [point for point in points if point.test_error is not None and point.role is not Role.REFERENCE]
    return {point.trial_id for point in tested if point.setting not in front}


def references(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Return the reference networks that were trained to their end.

    Args:
        points: of a study, by size.

    Returns:
        One point for all seeds of a network, by size.
    """
    return [point for point in points if point.role is Role.REFERENCE and point.finished and point.leads]


def find_reference(points: Iterable[FrontPoint], method: str) -> FrontPoint | None:
    """Return the reference network of a method.

    Args:
        points: of a study.
        method: e.g. `separable`.

    Returns:
        The largest, where there are thinner ones too; None if none was trained to its end.
    """
    return max((p for p in references(points) if p.method == method), key=lambda p: p.params, default=None)


def validation_images(study: StudyRecord) -> int | None:
    """Return how many images an error was measured on.

    Args:
        study: the records.

    Returns:
        The number; None if the study does not have it.
    """
    return study.header.data.val_images or None


def searched_trials(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials of the search and their repeats that were trained to their end.

    Args:
        study: the records.

    Returns:
        The trials; references and broken ones are left out.
    """
    completed = completed_trials(study.trials.values())
    reference_keys = {point_key(trial) for trial in completed if trial.role is Role.REFERENCE}
    return [trial for trial in completed if point_key(trial) not in reference_keys]


def _point(
    trial: TrialRecord, seeds: Sequence[TrialRecord], lost: str, full_width: float, setting: str, *,
    competes: bool,
) -> FrontPoint:  # fmt: skip
    """The point of a trial; `seeds` are the finished, sound trials of the same point.

    The first of them represents the point. Its role is that of a search even if it came as a repeat, because the trial
    that it repeated was found to be broken.
    """
    leads = not seeds or trial.trial_id == seeds[0].trial_id
    spec, counts = trial.specification, trial.counts
    separable, dense = counts.get("separable_params"), counts.get("dense_params")
    return FrontPoint(
        trial_id=trial.trial_id,
        role=Role.SEARCH if leads and trial.role is Role.REPEAT else trial.role,
        stratum=trial.stratum,
        method=trial.method,
        params=counts["params"],
        status=trial.status,
        dims=spec.method.dims if spec else None,
        rank_scale=spec.method.rank_scale if spec else None,
        mult_adds=counts.get("mult_adds"),
        ratio=counts["params"] / separable if separable else None,
        dense_ratio=counts["params"] / dense if dense else None,
        val_error=trial.val_error,
        balanced_error=_balanced_error([*seeds] or [trial]),
        test_error=trial.test_error,
        weight_decay=spec.train.weight_decay if spec else None,
        scaled_decay=spec.train.scaled_decay if spec else None,
        seed=trial.seed,
        seeds=max(1, len(seeds)),
        mean_error=mean_error(seeds) if seeds else None,
        spread=stdev(seed.val_error or 0.0 for seed in seeds) if len(seeds) > 1 else None,
        leads=leads,
        competes=competes,
        epochs=trial.last_epoch,
        total_epochs=trial.total_epochs,
        initial_error=trial.initial_error,
        start=start_kind(spec),
        teacher=spec.teacher.name if spec and spec.teacher else "",
        reason=trial.reason,
        aliases=len(trial.aliases),
        width=spec.network.width if spec else 1.0,
        whole_width=full_width,
        extras=_extras(spec) if spec else (),
        lost=lost,
        host=trial.last_attempt("host"),
        device=trial.last_attempt("device"),
        setting=setting,
    )


def setting_ids(trials: Iterable[TrialRecord]) -> dict[str, str]:
    """Name the setting of each trial: what is trained, without the seed.

    Args:
        trials: of a study, in order of proposal.

    Returns:
        Id of the trial -> 12 hexadecimal digits, the same for all seeds of a setting. Two completed trials of one seed
        are never one setting: old specifications do not tell all of them apart.
    """
    trials = list(trials)
    keys = {trial.trial_id: point_key(trial) for trial in trials}
    leads: dict[str, str] = {}
    for seeds in group_by_point(trials):
        key, lead = point_key(seeds[0]), seeds[0].trial_id
        if leads.setdefault(key, lead) != lead:
            keys |= {trial.trial_id: f"{key} {lead}" for trial in seeds}
    return {trial_id: hashlib.sha256(key.encode()).hexdigest()[:12] for trial_id, key in keys.items()}


def _start_words(spec: TrialSpec) -> str:
    """How the network starts: a dense one that starts from trained weights is trained further."""
    if spec.method.name != DENSE:
        return STARTS[start_kind(spec)]
    return "trained further" if spec.train.epochs else ""


def taught_by(teacher: str) -> str:
    """Say in words which teacher taught a trial.

    Args:
        teacher: its name on record.

    Returns:
        E.g. `taught by wrn2810`.
    """
    return f"taught by {'the trained network' if teacher == ITSELF else teacher}"


def _extras(spec: TrialSpec) -> tuple[str, ...]:
    """A teacher, a budget that is not shared evenly and a start from trained weights, in words."""
    labels = [
        taught_by(spec.teacher.name) if spec.teacher else "",
        f"shared by {spec.allocation.by}" if spec.allocation and spec.allocation.by != "even" else "",
        _start_words(spec) if spec.start else "",
    ]
    return tuple(filter(None, labels))


def _balanced_error(trials: Sequence[TrialRecord]) -> float | None:
    """Mean over seeds of the last epoch's balanced error; None where a record is older than that metric."""
    errors = [trial.epochs.get(trial.last_epoch, {}).get(BALANCED_ERROR) for trial in trials]
    measured = [error for error in errors if error is not None]
    return sum(measured) / len(measured) if len(measured) == len(errors) else None
