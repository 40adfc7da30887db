"""Finds what a log is about and makes its entries, in order of time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.findings import field_differences, tracking_uri
from analysis.research_log.entries import STUDY, Entry, EntryTable
from analysis.research_log.other_entries import (
    COMPRESS_FILE,
    TEACHER_FILE,
    compress_entry,
    find_compressed,
    find_teachers,
    teacher_entry,
)
from analysis.research_log.study_entries import study_entries
from analysis.sources import load_typed_notes
from analysis.utils import silent
from lowrank.errors import InputError
from lowrank.utils import absolute_path, relative_path
from sweeps.records import (
    StudyEvents,
    StudyHeader,
    StudyRecord,
    find_study,
    is_study,
    list_studies,
    load_history,
    mlflow_names,
    read_notes,
)

SHOWN_CHANGES = 15
SECTIONS = ("space", "data", "seed", "commit", "hardware", "versions")  # in which changes are listed
MAX_VALUE = 80  # characters


@dataclass(frozen=True, kw_only=True)
class LogSources:
    """What a log is about.

    Attributes:
        studies: folders.
        teachers: folders.
        compressed: folders that `lowrank.compress` wrote.
    """

    studies: tuple[Path, ...] = ()
    teachers: tuple[Path, ...] = ()
    compressed: tuple[Path, ...] = ()


def find_sources(names: Sequence[str], studies: Path, teachers: Path) -> LogSources:
    """Find what a log is about.

    Args:
        names: studies by name, or folders of studies, teachers and compressed networks; empty for all there are.
        studies: the folder of studies.
        teachers: the folder of teachers.

    Returns:
        The folders.

    Raises:
        InputError: a name is none of these; the text lists the studies there are.
    """
    if not names:
        folders = tuple(studies / name for name in list_studies(studies))
        return LogSources(
            studies=folders, teachers=tuple(find_teachers(teachers)), compressed=tuple(find_compressed(Path()))
        )
    kinds: dict[str, list[Path]] = {"studies": [], "teachers": [], "compressed": []}
    for name in dict.fromkeys(names):
        absolute_path(name, "the study")
        folder = Path(name)
        if (folder / TEACHER_FILE).is_file():
            kinds["teachers"].append(folder)
        elif (folder / COMPRESS_FILE).is_file() and not is_study(folder):
            kinds["compressed"].append(folder)
        else:
            kinds["studies"].append(find_study(name, studies))
    return LogSources(**{kind: tuple(folders) for kind, folders in kinds.items()})


def collect_entries(
    sources: LogSources, since: float = -math.inf, uri: str | None = None, step: Callable[[str], None] = silent
) -> list[Entry]:  # fmt: skip
    """Make the entries of a log.

    What is typed in MLflow is read where a store is there. A store that does not answer is named on standard error.

    Args:
        sources: what the log is about.
        since: the first time of an entry, in seconds since the epoch.
        uri: of the MLflow store; None for that of each study.
        step: is called with the name of each source.

    Returns:
        The entries, oldest first.

    Raises:
        InputError: a record is damaged.
    """
    entries: list[Entry] = []
    for folder in sources.studies:
        step(folder.name)
        history = load_history(folder)
        entries += study_entries(history, read_notes(folder), _typed(history, folder, uri), relative_path(folder))
    for folder in sources.teachers:
        step(folder.name)
        entries.append(teacher_entry(folder))
    for folder in sources.compressed:
        step(folder.name)
        entries.append(compress_entry(folder))
    entries.sort(key=lambda entry: (entry.began, entry.key))
    return [entry for entry in _with_changes(_with_unique_keys(entries)) if entry.began >= since]


def _typed(history: StudyEvents, folder: Path, uri: str | None) -> Mapping[str, str]:
    """What people typed in MLflow; nothing where no store is there, or where it does not answer."""
    address = uri or tracking_uri(history.study, folder)
    if address is None:
        return {}
    try:
        return load_typed_notes(address, history.study, mlflow_names.study_key(StudyHeader.parse(history.events[0])))
    except InputError as error:
        print(f"{folder}: what was typed in MLflow is left out: {error}", file=sys.stderr)
        return {}


def _with_unique_keys(entries: Sequence[Entry]) -> list[Entry]:
    """Two folders may hold copies of one study."""
    taken: dict[str, int] = {}
    unique = []
    for entry in entries:
        taken[entry.key] = taken.get(entry.key, 0) + 1
        number = taken[entry.key]
        if number == 1:
            unique.append(entry)
            continue
        key = f"{entry.key}-{number}"
        pictures = tuple(replace(job, name=job.name.replace(entry.key, key)) for job in entry.pictures)
        unique.append(replace(entry, key=key, pictures=pictures))
    return unique


def _with_changes(entries: Sequence[Entry]) -> list[Entry]:
    """Each run of a study with what is not as in the run before: of the study, else of its group, else of all."""
    studies: list[Entry] = []
    changed = []
    for entry in entries:
        if entry.kind != STUDY:
            changed.append(entry)
            continue
        before = _run_before(entry, studies)
        studies.append(entry)
        changed.append(entry if before is None else replace(entry, changed=_changes(before, entry)))
    return changed


def _run_before(entry: Entry, earlier: Sequence[Entry]) -> Entry | None:
    same_study = [other for other in earlier if (other.name, other.folder) == (entry.name, entry.folder)]
    same_group = [other for other in earlier if entry.group and other.group == entry.group]
    return next((candidates[-1] for candidates in (same_study, same_group, earlier) if candidates), None)


def _changes(before: Entry, entry: Entry) -> EntryTable:
    studies = [StudyRecord(header=one.header) for one in (before, entry)]
    differences = [difference for difference in field_differences(studies) if difference.field != "space.question"]
    differences.sort(key=lambda difference: SECTIONS.index(difference.field.partition(".")[0]))
    rows = [(d.field.removeprefix("space."), *(_value(value) for value in d.values)) for d in differences]
    title = f"Changed since {before.heading}"
    if not rows:
        return EntryTable(title=f"{title}: nothing but the command", headings=("field", "before", "now"), rows=())
    more = f" ({len(rows):,} fields, the first {SHOWN_CHANGES})" if len(rows) > SHOWN_CHANGES else ""
    return EntryTable(
        title=f"{title}{more}", headings=("field", "before", "now"), rows=tuple(rows[:SHOWN_CHANGES])
    )  # fmt: skip


def _value(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
