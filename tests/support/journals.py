"""Events of journals, and journals as an older version wrote them.

Lines of an older version have no version, number and checksum, so tests may change them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.records.journal import CHECKSUM_FIELD, NUMBER_FIELD, VERSION_FIELD, JournalReader, damage_error
from sweeps.records.model import StudyRecord, apply_event


def read_events(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the events of a journal, oldest first, up to the first damaged line, which raises InputError."""
    for line in JournalReader(path).scan():
        if line.damage:
            raise damage_error(path, line.number, line.byte, line.damage)
        yield line.event


def fold_events(events: Iterable[Mapping[str, Any]]) -> StudyRecord:
    """Apply events, oldest first, to the record of a study."""
    study = StudyRecord()
    for event in events:
        apply_event(study, event)
    return study


def plain_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal as they are on its lines, but for version, number and checksum."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    seal = (VERSION_FIELD, NUMBER_FIELD, CHECKSUM_FIELD)
    return [{key: value for key, value in event.items() if key not in seal} for event in events]


def write_plain(path: Path, events: Iterable[Any]) -> None:
    """Write events, or whatever stands in their place, as an older version did."""
    path.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events))


def make_plain(path: Path) -> str:
    """Make a journal one of an older version and return its text."""
    write_plain(path, plain_events(path))
    return path.read_text()
