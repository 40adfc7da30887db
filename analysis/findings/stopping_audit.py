"""An audit of early stopping: completed trials are replayed; would a rule have stopped the winner?

Only trials that trained to their end have a whole curve. Those that a rule stopped when the study ran are left out and
counted, because the error that they would have reached is unknown. A study run with `search.stop: none` is audited in
full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lowrank.utils import format_counted
from sweeps.records import VAL_ERROR, Role, Status, StudyRecord, TrialRecord
from sweeps.search import DEFAULTS, make_rule

RULES = ("asha", "median", "hyperband")


@dataclass(frozen=True, kw_only=True)
class RuleVerdict:
    """What one rule would have done in one stratum. Errors are validation errors in percent.

    Attributes:
        rule: its name.
        stratum: label of the budget.
        trials: how many were replayed.
        winner: id of the trial of the lowest final error.
        winner_error: that error.
        stopped_at: the epoch at which the winner would have been stopped; None if it would not.
        stopped: how many trials would have been stopped.
        saved: share of all epochs that would not have been trained.
        kept_error: the lowest final error among those not stopped; None if there are none.
    """

    rule: str
    stratum: str
    trials: int
    winner: str
    winner_error: float
    stopped_at: int | None
    stopped: int
    saved: float
    kept_error: float | None

    def text(self) -> str:
        """Return the verdict in one line."""
        saved = f"{self.stopped} of {self.trials} stopped, {100 * self.saved:.0f} % of the epochs saved"
        if self.stopped_at is None:
            return f"{self.rule}, {self.stratum}: the winner would have been kept ({saved})"
        lost = "nothing would be left" if self.kept_error is None else (
            f"the best one kept has {self.kept_error - self.winner_error:.2f} points more"
        )  # fmt: skip
        return (
            f"{self.rule}, {self.stratum}: THE WINNER ({self.winner}, {self.winner_error:.2f} %) would have been "
            f"stopped at epoch {self.stopped_at}; {lost} ({saved})"
        )


def audit_stopping(study: StudyRecord) -> list[RuleVerdict]:
    """Replay every rule in every stratum with at least two completed trials.

    Args:
        study: the records.

    Returns:
        A verdict a rule and stratum.
    """
    strata: dict[str, list[TrialRecord]] = {}
    for trial in study.trials.values():
        finished = trial.status is Status.COMPLETED and trial.val_error is not None and not trial.broken
        if trial.role is Role.SEARCH and finished:
            strata.setdefault(trial.stratum, []).append(trial)
    settings = {**DEFAULTS, **_recorded_settings(study)}
    return [
        _verdict(rule, stratum, trials, settings)
        for rule in RULES
        for stratum, trials in strata.items()
        if len(trials) > 1
    ]


def _recorded_settings(study: StudyRecord) -> dict[str, float]:
    search = study.header.section("search")
    return {name: value for name in DEFAULTS if isinstance(value := search.get(name), int | float)}


def _verdict(rule: str, stratum: str, trials: list[TrialRecord], settings: Mapping[str, float]) -> RuleVerdict:
    stopped = replay_rule(rule, trials, settings)
    winner = min(trials, key=lambda trial: (trial.val_error or 0.0, trial.counts.get("params", 0)))
    remaining = [trial.val_error or 0.0 for trial in trials if trial.trial_id not in stopped]
    saved = sum(trial.last_epoch - stopped.get(trial.trial_id, trial.last_epoch) for trial in trials)
    return RuleVerdict(
        rule=rule, stratum=stratum, trials=len(trials), winner=winner.trial_id, winner_error=winner.val_error or 0.0,
        stopped_at=stopped.get(winner.trial_id), stopped=len(stopped),
        saved=saved / sum(trial.last_epoch for trial in trials), kept_error=min(remaining, default=None),
    )  # fmt: skip


def replay_rule(rule: str, trials: Iterable[TrialRecord], settings: Mapping[str, float]) -> dict[str, int]:
    """Replay one rule on whole curves, in the order in which their epochs were reported.

    A trial that is stopped reports nothing more. Trials that ran beside it stay as they were: a free slot is not
    filled.

    Args:
        rule: its name.
        trials: the completed trials.
        settings: of the rule.

    Returns:
        Id of each trial that would have been stopped -> the epoch.
    """
    trials = list(trials)
    epochs = max(trial.last_epoch for trial in trials)
    stopper = make_rule(
        rule,
        epochs=epochs,
        grace=settings["grace"],
        reduction=settings["reduction"],
        brackets=int(settings["brackets"]),
    )
    points = [
        (metrics.get("time", 0.0), epoch, trial.trial_id, metrics[VAL_ERROR])
        for trial in trials
        for epoch, metrics in trial.epochs.items()
        if VAL_ERROR in metrics  # of the others no rule was told anything
    ]
    stopped: dict[str, int] = {}
    for _, epoch, trial_id, error in sorted(points):
        if (
            trial_id not in stopped
            and stopper is not None
            and stopper.report(trial_id, epoch, error)
            and epoch < epochs
        ):
            stopped[trial_id] = epoch
    return stopped


def audit_text(study: StudyRecord) -> str:
    """Return the audit in words.

    Args:
        study: the records.

    Returns:
        A line a verdict, then what the winner is and how many trials were left out.
    """
    lines = [verdict.text() for verdict in audit_stopping(study)]
    if lines:
        lines.append("the winner is the trial of the lowest measured error; others may be as good")
    searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH]
    cut = sum(trial.status is Status.STOPPED for trial in searched)
    if cut:
        lines.append(f"left out, without a whole curve: {format_counted(cut, 'trial')} stopped when the study ran")
    return "\n".join(lines) or "nothing to audit: no stratum has two trials that trained to their end"
