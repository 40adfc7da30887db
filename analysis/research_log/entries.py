"""What a log says, as typed records; all texts are plain, and only `document` makes Markdown of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from analysis.reporting import DrawJob
from sweeps.records import NoteKind, StudyHeader

STUDY, TEACHER, COMPRESS = "study", "teacher", "compress"


@dataclass(frozen=True, kw_only=True)
class EntryNote:
    """Something that a person wrote outside the log.

    Attributes:
        text: the note.
        source: how it was given, e.g. `--note`.
        kind: what it is.
        time: when, in seconds since the epoch; None where that is not on record.
        trial: id of the trial; "" for the study.
        note_id: of a to-do that `analysis note --done` closes; "" for others.
        open: whether it is a to-do that nobody has closed.
    """

    text: str
    source: str
    kind: NoteKind = NoteKind.NOTE
    time: float | None = None
    trial: str = ""
    note_id: str = ""
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class EntryTable:
    """A table: the texts of its headings and rows."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run: of a study's driver, of `lowrank.compress`, or the training of a teacher.

    Attributes:
        key: names its markers and pictures; made of the kind, the name and the time, so that it stays.
        kind: STUDY, TEACHER or COMPRESS.
        name: of the study or teacher, or the folder of the compressed network.
        title: of the entry, without the date.
        began: seconds since the epoch.
        group: of studies; "" for none.
        question: that a study asks.
        outcome: in a few words, for the list of all entries.
        facts: names and values.
        answer: paragraphs.
        tables: the front, and others.
        failures: what failed, with reasons.
        changed: what is not as in the run before.
        notes: of people.
        commands: what to type, each with what it does.
        pictures: to draw.
        header: of the study's run, to compare it with that of another.
        folder: of the study, as the reader would type it; "" for others.
    """

    key: str
    kind: str
    name: str
    title: str
    began: float
    group: str = ""
    question: str = ""
    outcome: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    answer: tuple[str, ...] = ()
    tables: tuple[EntryTable, ...] = ()
    failures: EntryTable | None = None
    changed: EntryTable | None = None
    notes: tuple[EntryNote, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    pictures: tuple[DrawJob, ...] = ()
    header: StudyHeader = field(default_factory=StudyHeader)
    folder: str = ""

    @property
    def heading(self) -> str:
        """Date, time (UTC) and title."""
        return f"{date_and_time(self.began)} {self.title}"


def date_and_time(seconds: float) -> str:
    """Return a time for readers.

    Args:
        seconds: since the epoch.

    Returns:
        E.g. `2026-11-22 19:53`, in UTC.
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def entry_key(kind: str, name: str, began: float) -> str:
    """Return the key of an entry.

    Args:
        kind: of the entry.
        name: of the study, teacher or folder.
        began: seconds since the epoch.

    Returns:
        A name without blanks, that no other run has.
    """
    stamp = datetime.fromtimestamp(began, UTC).strftime("%Y%m%dT%H%M%SZ")
    plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in name)
    return f"{kind}-{plain}-{stamp}"
