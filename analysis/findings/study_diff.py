"""In what several studies differ: their questions, and the trials that they share or do not share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.findings.failures import describe_setting
from sweeps.records.events import Status
from sweeps.records.model import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """A field of the spaces with one value a study; None where a study has none."""

    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class TrialDifference:
    """One specification; status ("" where a study has not got it) and validation error (percent) by study."""

    trial_id: str
    setting: str
    kind: str  # "same", "differs" or "not in all"
    statuses: tuple[str, ...]
    errors: tuple[float | None, ...]


def field_differences(studies: Sequence[StudyRecord]) -> list[FieldDifference]:
    """The fields of question, data and space in which not all studies agree."""
    flat = [_flat(_described(study)) for study in studies]
    names = sorted({name for fields in flat for name in fields})
    found = []
    for name in names:
        values = tuple(fields.get(name) for fields in flat)
        if any(value != values[0] for value in values):
            found.append(FieldDifference(field=name, values=values))
    return found


def _described(study: StudyRecord) -> dict[str, Any]:
    header = study.header
    wanted = ("space", "data", "seed", "commit", "versions", "hardware")
    return {name: header[name] for name in wanted if name in header}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else json.dumps(value)
    return found


def trial_differences(studies: Sequence[StudyRecord]) -> list[TrialDifference]:
    """Every specification of any of the studies; those that differ first, then those that not all have."""
    ids = dict.fromkeys(trial_id for study in studies for trial_id in study.trials)
    found = [_difference(trial_id, [study.trials.get(trial_id) for study in studies]) for trial_id in ids]
    order = ["differs", "not in all", "same"]
    return sorted(found, key=lambda each: order.index(each.kind))


def _difference(trial_id: str, records: Sequence[TrialRecord | None]) -> TrialDifference:
    known = [record for record in records if record is not None]
    outcomes = {_outcome(record) for record in known}
    kind = "differs" if len(outcomes) > 1 else "not in all" if len(known) < len(records) else "same"
    errors = tuple(record.val_error if record else None for record in records)
    statuses = tuple(_status(record) for record in records)
    return TrialDifference(
        trial_id=trial_id, setting=describe_setting(known[0]), kind=kind, statuses=statuses, errors=errors
    )


def _done(record: TrialRecord | None) -> bool:
    return record is not None and record.status is Status.COMPLETED


def _outcome(record: TrialRecord) -> tuple[str, float | None]:
    """Errors are shares of whole images: equal outcomes are equal numbers but for rounding."""
    return _status(record), round(record.val_error, 9) if record.val_error is not None and _done(record) else None


def _status(record: TrialRecord | None) -> str:
    if record is None:
        return ""
    return "broken" if record.broken else str(record.status)
