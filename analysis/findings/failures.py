"""Every trial that failed, diverged, ran out of memory, is infeasible, or was marked as broken."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.utils import method_label, status_label
from sweeps.records import Status, StudyRecord, TrialRecord

FAILED = (Status.FAILED, Status.OUT_OF_MEMORY, Status.DIVERGED, Status.INFEASIBLE)
BROKEN = "marked as broken"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One trial. The names of the fields are those of the CSV table.

    Attributes:
        trial_id: of the trial.
        kind: in which way it failed.
        setting: in words.
        stratum: label of its budget.
        epoch: the last on record; 0 before the first.
        host: where its last attempt ran.
        reason: why it failed.
    """

    trial_id: str
    kind: str
    setting: str
    stratum: str
    epoch: int
    host: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failures of one kind with the same method and stratum.

    Attributes:
        kind: in which way they failed.
        method: in words.
        stratum: label of the budget.
        count: how many there are.
        reason: the most frequent one.
    """

    kind: str
    method: str
    stratum: str
    count: int
    reason: str


def list_failures(study: StudyRecord) -> list[Failure]:
    """Return every failure; early stops are none.

    Args:
        study: the records.

    Returns:
        Trials that were marked as broken first, then by kind.
    """
    failures = [_failure(trial, kind) for trial in study.trials.values() if (kind := _kind(trial))]
    order = [BROKEN, *(status_label(status) for status in FAILED)]
    return sorted(failures, key=lambda failure: (order.index(failure.kind), failure.stratum, failure.trial_id))


def group_failures(failures: list[Failure]) -> list[FailureGroup]:
    """Group failures by kind, method and stratum.

    Args:
        failures: of a study.

    Returns:
        The groups, largest first.
    """
    by_key: dict[tuple[str, str, str], list[str]] = {}
    for failure in failures:
        method = failure.setting.partition(",")[0]
        by_key.setdefault((failure.kind, method, failure.stratum), []).append(failure.reason)
    listed = [
        FailureGroup(kind=kind, method=method, stratum=stratum, count=len(why), reason=max(why, key=why.count))
        for (kind, method, stratum), why in by_key.items()
    ]
    return sorted(listed, key=lambda group: (-group.count, group.kind, group.method, group.stratum))


def _kind(trial: TrialRecord) -> str:
    if trial.broken:
        return BROKEN
    return status_label(trial.status) if trial.status in FAILED else ""


def _failure(trial: TrialRecord, kind: str) -> Failure:
    hosts = [str(attempt["host"]) for attempt in trial.attempts if "host" in attempt]
    return Failure(
        trial_id=trial.trial_id, kind=kind, setting=describe_setting(trial), stratum=trial.stratum,
        epoch=trial.last_epoch, host=hosts[-1] if hosts else "", reason=trial.broken or trial.reason,
    )  # fmt: skip


def describe_setting(trial: TrialRecord) -> str:
    """Return a trial's method and its shape in words.

    Args:
        trial: the record; its size need not be known.

    Returns:
        E.g. `tensor train, 3 dims, rank scale 0.31`.
    """
    method = trial.specification.method if trial.specification else None
    dims = (method.dims if method else None) or trial.parameters.get("method.dims")
    scale = method.rank_scale if method else None
    parts = [method_label(trial.method), f"{dims} dims" if dims else "", f"rank scale {scale:.3g}" if scale else ""]
    return ", ".join(part for part in parts if part)
