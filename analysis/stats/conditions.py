"""What must be equal before errors are put side by side: network, training, start, data.

A field in which the trials of one study differ was varied on purpose and is no difference. Studies differ in a field
where each has one value of it and not all have the same. Width and start count with the rest, unless a study varies
them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.errors import InputError
from sweeps.records import Role, StudyRecord, TrialRecord, TrialSpec

EPOCHS, DATA = "train.epochs", "data.fingerprint"
# In one study these never differ; a study with several values of them was put together by an older version
_NEVER_VARIED = (EPOCHS, "network.name", DATA)


@dataclass(frozen=True, kw_only=True)
class MixedField:
    """A field in which trials or studies differ that stand side by side.

    Attributes:
        field: its dotted name.
        values: as JSON, in the order of the studies.
    """

    field: str
    values: tuple[str, ...]

    def text(self) -> str:
        """Return the field and its values, e.g. `train.epochs (6; 128)`."""
        return f"{self.field} ({'; '.join(dict.fromkeys(_shown(value) for value in self.values))})"


def differing_fields(studies: Sequence[StudyRecord]) -> list[MixedField]:
    """Return in what studies differ that makes their errors unequal.

    Args:
        studies: two or more.

    Returns:
        The fields by name; those that a study varies by itself, and those that not all studies have trials of, are left
        out.
    """
    conditions = [values for study in studies if (values := _values_by_field(study))]
    names = sorted({name for values in conditions for name in values})
    mixed = []
    for name in names:
        sets = [values.get(name, {"null"}) for values in conditions]
        if all(len(values) == 1 for values in sets) and len({next(iter(values)) for values in sets}) > 1:
            mixed.append(MixedField(field=name, values=tuple(next(iter(values)) for values in sets)))
        elif name in _NEVER_VARIED and len(set.union(*sets)) > 1:
            mixed.append(MixedField(field=name, values=tuple(sorted(set.union(*sets)))))
    return mixed


def mixed_fields(study: StudyRecord) -> list[MixedField]:
    """Return in what the trials of one study differ that no single study varies.

    Args:
        study: the records.

    Returns:
        For a study that was put together, the fields in which its studies differ; else those of epochs, network and
        data that have several values.
    """
    stored = study.header.mixed
    if stored:
        return [MixedField(field=name, values=values) for name, values in stored.items()]
    values = _values_by_field(study)
    return [
        MixedField(field=name, values=tuple(sorted(values[name])))
        for name in _NEVER_VARIED
        if len(values.get(name, ())) > 1
    ]


def check_equal(mixed: Sequence[MixedField], *, allowed: bool) -> None:
    """Refuse to put unequal trials side by side, unless the user said so.

    Other data are not refused here: their errors are never put together, whatever the user says.

    Args:
        mixed: in what they differ.
        allowed: whether `--mixed` was given.

    Raises:
        InputError: they differ, and that is not allowed.
    """
    mixed = [entry for entry in mixed if entry.field != DATA]
    if mixed and not allowed:
        raise InputError(
            "trials of one table must share network, epochs, recipe, start and data, but they differ in "
            f"{', '.join(field.text() for field in mixed)}; --mixed puts them together and marks it"
        )


def mixed_text(mixed: Sequence[MixedField]) -> str:
    """Return the mark of tables with unequal trials; "" for none.

    Args:
        mixed: in what they differ.

    Returns:
        One sentence.
    """
    if not mixed:
        return ""
    return f"Mixed: the trials differ in {', '.join(field.text() for field in mixed)}; errors are not like for like."


def mixed_words(trial: TrialRecord, mixed: Sequence[MixedField]) -> tuple[str, ...]:
    """Say what a trial of a mixed study has of the fields in which the trials differ.

    Args:
        trial: the record.
        mixed: the fields.

    Returns:
        E.g. `6 epochs` and `learning_rate 0.1`.
    """
    values = _fields(trial.specification) if trial.specification else {}
    shown = {entry.field: _shown(values.get(entry.field, "null")) for entry in mixed}
    return tuple(
        f"{value} epoch{'s' * (value != '1')}" if field == EPOCHS else f"{field.partition('.')[2]} {value}"
        for field, value in shown.items()
    )


def _values_by_field(study: StudyRecord) -> dict[str, set[str]]:
    """Field -> all values of it in the trials of a study; references count where nothing else was trained.

    A trial whose record lacks its specification says nothing.
    """
    trials = [trial for trial in study.trials.values() if trial.specification and not trial.broken]
    searched = [trial for trial in trials if trial.role is not Role.REFERENCE]
    values: dict[str, set[str]] = defaultdict(set)
    fields = [_fields(trial.specification) for trial in searched or trials if trial.specification]
    for name in {name for entry in fields for name in entry}:
        values[name] = {entry.get(name, "null") for entry in fields}
    return dict(values)


def _fields(spec: TrialSpec) -> dict[str, str]:
    sections = spec.model_dump(mode="json", include={"network", "train"}, exclude_unset=True)
    fields = {
        f"{section}.{name}": json.dumps(value, sort_keys=True)
        for section, values in sections.items()
        for name, value in values.items()
        if value is not None and name not in ("weights", "seed")
    }
    if spec.start:
        fields["start.how"] = json.dumps(spec.start.kind)
    return {**fields, DATA: json.dumps(spec.data.fingerprint)}


def _shown(text: str) -> str:
    value = json.loads(text)
    return "none" if value is None else value if isinstance(value, str) else text
