"""What did not work: every trial that failed, diverged, ran out of memory, cannot be, or was marked as broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.utils.formatting import method_label, status_label
from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord

FAILED = (Status.FAILED, Status.OUT_OF_MEMORY, Status.DIVERGED, Status.INFEASIBLE)
BROKEN = "marked as broken"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One trial: in which way it failed, what it was, where (stratum, epoch, host) and why."""

    trial_id: str
    kind: str
    setting: str
    stratum: str
    epoch: int  # the last on record; 0 before the first
    host: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failures of one kind with the same method and stratum."""

    kind: str
    method: str
    stratum: str
    count: int
    reason: str  # the commonest


def list_failures(study: StudyRecord) -> list[Failure]:
    """Every failure, broken trials first, then by kind; an early stop is none."""
    found = [_failure(trial, kind) for trial in study.trials.values() if (kind := _kind(trial))]
    order = [BROKEN, *(status_label(status) for status in FAILED)]
    return sorted(found, key=lambda failure: (order.index(failure.kind), failure.stratum, failure.trial_id))


def group_failures(found: list[Failure]) -> list[FailureGroup]:
    """The same by kind, method and stratum, most frequent first."""
    by_key: dict[tuple[str, str, str], list[str]] = {}
    for failure in found:
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
    """The method and its shape in words, also of a trial whose size is not known."""
    method: dict[str, Any] = trial.specification.get("method") or {}
    dims = method.get("dims") or trial.parameters.get("method.dims")
    scale = method.get("rank_scale")
    parts = [method_label(trial.method), f"{dims} dims" if dims else "", f"rank scale {scale:.3g}" if scale else ""]
    return ", ".join(part for part in parts if part)
