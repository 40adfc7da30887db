"""Which searched fields the validation error depends on most, by Optuna's evaluators on a rebuilt study.

* PED-ANOVA: what distinguishes the better tenth from the rest (Watanabe et al., IJCAI 2023).
* Mean decrease of impurity: what a random forest over all completed trials splits on. fANOVA, Optuna's older default,
  says the same of such forests and takes a minute for 2,000 trials, so it is left out.

A setting of several seeds is one point with its mean error over them. Shares sum to 1.

Sizes are searched too in most spaces, and then matter most. That says nothing about shapes, so a space with budgets is
also evaluated within them, on the error less the median of its stratum.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sweeps.records import StudyRecord, mean_error, searched_points

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 20  # with fewer, shares change with every further trial
MAX_LINEAR_RATIO = 20.0  # a positive field that spans more is taken by its logarithm
SEEDS = ("seed", "search.seed")


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one evaluator found.

    Attributes:
        evaluator: its name; empty where nothing could be evaluated.
        within_budgets: whether the errors were taken less the median of their stratum.
        trials: how many settings were evaluated, each by its mean error over seeds.
        seeds: the largest number of seeds of a setting.
        shares: (field, share), largest first; shares sum to 1.
        note: why there are no shares.
        left_out: searched fields that not every setting has, such as those of one method; no share is theirs.
    """

    evaluator: str
    within_budgets: bool
    trials: int
    seeds: int
    shares: tuple[tuple[str, float], ...]
    note: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchedSetting:
    """What was searched, and its error.

    Attributes:
        parameters: the searched fields.
        stratum: the label of its budget.
        error: validation error in percent, the mean over its seeds.
        seeds: how many there are.
    """

    parameters: Mapping[str, Any]
    stratum: str
    error: float
    seeds: int


def searched_settings(study: StudyRecord) -> list[SearchedSetting]:
    """Return the completed settings of a study, small enough for another process.

    Args:
        study: the records.

    Returns:
        What `field_importances` needs.
    """
    return [
        SearchedSetting(
            parameters=seeds[0].parameters, stratum=seeds[0].stratum, error=mean_error(seeds), seeds=len(seeds)
        )
        for seeds in searched_points(study.trials.values())
    ]


def field_importances(trials: Sequence[SearchedSetting]) -> list[Importance]:
    """Evaluate which fields matter, within budgets and over all sizes.

    Args:
        trials: the settings.

    Returns:
        One entry for each evaluator and each way of taking the errors; a single one with a note if there are too few
        settings or fields.
    """
    seeds = max((trial.seeds for trial in trials), default=0)
    names = _fields(trials)
    if len(trials) < MIN_TRIALS or len(names) < 2:
        need = f"importance needs at least {MIN_TRIALS} completed settings and two searched fields that vary"
        return [Importance(
            evaluator="", within_budgets=False, trials=len(trials), seeds=seeds, shares=(),
            note=f"{need}; this study has {len(trials)} and {len(names)}", left_out=_left_out(trials),
        )]  # fmt: skip
    importances = []
    errors = [trial.error for trial in trials]
    for within in (True, False) if len({trial.stratum for trial in trials}) > 1 else (False,):
        values = _relative(trials, errors) if within else errors
        chosen = [name for name in names if not (within and name.startswith("budget."))]
        if len(chosen) > 1:
            entries = _evaluate(trials, values, chosen, within)
            importances += [replace(entry, seeds=seeds, left_out=_left_out(trials)) for entry in entries]
    return importances


def _fields(trials: Sequence[SearchedSetting]) -> list[str]:
    """The fields that every trial has and that vary: only those can be evaluated together."""
    if not trials:
        return []
    shared = set.intersection(*(set(trial.parameters) for trial in trials)) - set(SEEDS)
    return sorted(name for name in shared if len({str(trial.parameters[name]) for trial in trials}) > 1)


def _left_out(trials: Sequence[SearchedSetting]) -> tuple[str, ...]:
    """The fields that some settings have and others have not."""
    if not trials:
        return ()
    sets: list[set[str]] = [set(trial.parameters) for trial in trials]
    everywhere = set.intersection(*sets)
    return tuple(sorted(set.union(*sets) - everywhere - {*SEEDS, "alternative"}))


def _relative(trials: Sequence[SearchedSetting], errors: Sequence[float]) -> list[float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for trial, error in zip(trials, errors, strict=True):
        groups[trial.stratum].append(error)
    middle = {stratum: statistics.median(values) for stratum, values in groups.items()}
    return [error - middle[trial.stratum] for trial, error in zip(trials, errors, strict=True)]


def _evaluate(
    trials: Sequence[SearchedSetting], values: Sequence[float], names: Sequence[str], within: bool
) -> list[Importance]:
    import optuna
    from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _rebuild(trials, values, names)
    makers: dict[str, Callable[[], Any]] = {
        "PED-ANOVA, the better tenth": PedAnovaImportanceEvaluator,
        "mean decrease of impurity": lambda: MeanDecreaseImpurityImportanceEvaluator(seed=0),
    }
    importances = []
    for label, make_evaluator in makers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = optuna.importance.get_param_importances(study, evaluator=make_evaluator(), params=list(names))
        ordered = tuple((name, float(share)) for name, share in shares.items())
        importances.append(
            Importance(evaluator=label, within_budgets=within, trials=len(trials), seeds=1, shares=ordered)
        )
    return importances


def _rebuild(trials: Sequence[SearchedSetting], values: Sequence[float], names: Sequence[str]) -> Any:
    import optuna

    distributions = {name: _distribution([trial.parameters[name] for trial in trials]) for name in names}
    study = optuna.create_study()
    study.add_trials([
        optuna.trial.create_trial(
            params={name: _plain(trial.parameters[name]) for name in names}, distributions=distributions, value=value
        )
        for trial, value in zip(trials, values, strict=True)
    ])  # fmt: skip
    return study


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range that the values span: a number's, or a choice of what else there is."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return CategoricalDistribution(sorted({_plain(value) for value in values}, key=str))
    low, high = min(values), max(values)
    log = low > 0 and high / low > MAX_LINEAR_RATIO
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), math.nextafter(float(high), math.inf), log=log)
