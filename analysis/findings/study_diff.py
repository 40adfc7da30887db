"""In what several studies differ: their settings, and the outcomes of their trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.findings.failures import describe_setting
from sweeps.records import Status, StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """A setting in which studies differ.

    Attributes:
        field: its dotted name.
        values: one a study; None where a study does not have the field.
    """

    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class TrialDifference:
    """The outcomes of one trial in several studies.

    Attributes:
        trial_id: the same in all of them.
        setting: in words.
        kind: "same", "differs" or "not in all".
        statuses: one a study; "" where a study does not have the trial.
        errors: validation errors in percent, one a study.
    """

    trial_id: str
    setting: str
    kind: str  # "same", "differs" or "not in all"
    statuses: tuple[str, ...]
    errors: tuple[float | None, ...]


def field_differences(studies: Sequence[StudyRecord]) -> list[FieldDifference]:
    """Return the fields of question, data and space in which not all studies agree.

    Args:
        studies: the records.

    Returns:
        The differences, by name of the field.
    """
    flat = [_flat(_described(study)) for study in studies]
    names = sorted({name for fields in flat for name in fields})
    differences = []
    for name in names:
        values = tuple(fields.get(name) for fields in flat)
        if any(value != values[0] for value in values):
            differences.append(FieldDifference(field=name, values=values))
    return differences


def _described(study: StudyRecord) -> dict[str, object]:
    sections = ("space", "data", "seed", "commit", "versions", "hardware")
    content = study.header.to_json()
    return {name: content[name] for name in sections if name in content}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{prefix}{key}.")
        else:
            fields[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else json.dumps(value)
    return fields


def trial_differences(studies: Sequence[StudyRecord]) -> list[TrialDifference]:
    """Return every trial of any of the studies.

    Args:
        studies: the records.

    Returns:
        Trials that came out differently first, then those that not all studies have, then the others.
    """
    ids = dict.fromkeys(trial_id for study in studies for trial_id in study.trials)
    differences = [_difference(trial_id, [study.trials.get(trial_id) for study in studies]) for trial_id in ids]
    order = ["differs", "not in all", "same"]
    return sorted(differences, key=lambda difference: order.index(difference.kind))


def _difference(trial_id: str, records: Sequence[TrialRecord | None]) -> TrialDifference:
    present = [record for record in records if record is not None]
    outcomes = {_outcome(record) for record in present}
    kind = "differs" if len(outcomes) > 1 else "not in all" if len(present) < len(records) else "same"
    errors = tuple(record.val_error if record else None for record in records)
    statuses = tuple(_status(record) for record in records)
    return TrialDifference(
        trial_id=trial_id, setting=describe_setting(present[0]), kind=kind, statuses=statuses, errors=errors
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
