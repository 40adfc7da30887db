"""The user's own notes, tags and groups: checked as they are typed, and the file that keeps notes on a study.

`notes.jsonl` lies beside the journal and not in it: the driver alone writes the journal while it runs, and notes are
written most of all while a study runs. It only grows, and each line says by its id whether it is whole; so files of two
machines are joined line by line.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lowrank.errors import InputError
from lowrank.utils import first_line, hold_lock, sync
from sweeps.records.journal import truncate_torn_line
from sweeps.records.names import NOTES_FILE
from sweeps.utils import Clock

MAX_NOTE_LENGTH = 2000  # characters; MLflow keeps 8,000 in a tag, into which several notes go
RESERVED_TAGS = frozenset({
    "study", "study_key", "trial_id", "point", "role", "stratum", "status", "reason", "attempts", "aliases", "adopted",
    "broken", "group",
    "data", "network", "question", "commit", "command", "seed", "hardware", "host", "device", "artifacts_complete",
    "tables",
})  # fmt: skip
TAG_RULE = r"[A-Za-z][A-Za-z0-9_-]{0,79}"
GROUP_TAG = "group"  # of a study, and so of all its runs in MLflow
GROUP_RULE = r"[^\W_](?:[\w .+-]{0,78}[^\W_])?"  # no quotes: MLflow's filters have no way to write them
NOTES_LOCK_SECONDS = 10.0


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """Parse the user's tags.

    Args:
        pairs: each `K=V`, as typed.

    Returns:
        Values by name.

    Raises:
        InputError: a tag has another form, or its name is reserved.
    """
    tags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(TAG_RULE, name) or not value or len(value) > MAX_NOTE_LENGTH:
            raise InputError(
                "a tag must read K=V, K of up to 80 letters, digits, `_` or `-` after a letter, V of up to "
                f"{MAX_NOTE_LENGTH:,} characters, but got {pair[:100]!r}"
            )
        if name in RESERVED_TAGS:
            raise InputError(f"the tag {name!r} is reserved, as are: {', '.join(sorted(RESERVED_TAGS))}")
        tags[name] = value
    return tags


def check_note(text: str | None) -> str:
    """Check the user's note.

    Args:
        text: as typed; None for no note.

    Returns:
        The note without outer blanks; "" for None.

    Raises:
        InputError: the note is blank or too long.
    """
    if text is None:
        return ""
    if not text.strip() or len(text) > MAX_NOTE_LENGTH:
        raise InputError(f"a note must have 1 to {MAX_NOTE_LENGTH:,} characters, but got {len(text.strip()):,}")
    return text.strip()


class NoteKind(StrEnum):
    """What a note is; the values are on disk and never change."""

    NOTE = "note"
    TAKEAWAY = "takeaway"  # what the study has taught
    TODO = "todo"  # what is left to do
    DONE = "done"  # closes the to-do that it names


@dataclass(frozen=True, kw_only=True)
class Note:
    """A note of the user on a study or on one of its trials.

    Attributes:
        time: when it was written, in seconds since the epoch.
        kind: what it is.
        text: the note; of kind DONE the id of the to-do that it closes.
        trial: id of the trial; "" for the study.
    """

    time: float
    kind: NoteKind
    text: str
    trial: str = ""

    @property
    def note_id(self) -> str:
        """Eight digits by which a to-do is closed; they change with any other field, so they show damage too."""
        content = json.dumps([self.time, str(self.kind), self.text, self.trial])
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    def line(self) -> bytes:
        """Return the line of the notes file."""
        fields = {
            "id": self.note_id, "time": self.time, "kind": str(self.kind), "text": self.text, "trial": self.trial,
        }  # fmt: skip
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def append_note(folder: Path, kind: NoteKind, text: str, trial: str = "") -> Note:
    """Add a note to a study, also while a driver runs it.

    Args:
        folder: of the study.
        kind: of the note.
        text: the note.
        trial: id of a trial; "" for the study.

    Returns:
        The note.

    Raises:
        LockedError: another process has been writing notes for too long.
        OSError: the disk is full or the folder cannot be written.
    """
    path = folder / NOTES_FILE
    with hold_lock(path.with_suffix(".lock"), timeout=NOTES_LOCK_SECONDS):
        truncate_torn_line(path)
        note = Note(time=Clock().now(), kind=kind, text=text, trial=trial)
        with path.open("ab", buffering=0) as file:
            file.write(note.line())
        sync(path)
    return note


def read_notes(folder: Path) -> list[Note]:
    """Read the notes of a study.

    Args:
        folder: of the study.

    Returns:
        The notes, oldest first; none where there is no file.

    Raises:
        InputError: a line is damaged; the text says what to do.
    """
    path = folder / NOTES_FILE
    notes, damage = parse_notes(path.read_bytes() if path.is_file() else b"")
    if damage:
        raise InputError(f"{path}: {damage[0]}; `python -m analysis repair {shlex.quote(str(folder))}` leaves it out")
    return notes


def parse_notes(content: bytes) -> tuple[list[Note], list[str]]:
    """Read the lines of a notes file; a last line that is not complete is left out.

    Args:
        content: of the file.

    Returns:
        The notes that are whole, oldest first and each once, and a line for each damage.
    """
    notes: dict[str, Note] = {}
    damage = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            fields = json.loads(line.decode())
            note_id = fields.pop("id")
            note = Note(**{**fields, "kind": NoteKind(fields["kind"])})
            if note.note_id != note_id:
                raise ValueError("its id does not fit its content")
            notes[note_id] = note
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            damage.append(f"line {number} is damaged: {first_line(error)}")
    return sorted(notes.values(), key=lambda note: note.time), damage


def notes_to_bytes(notes: Iterable[Note]) -> bytes:
    """Write notes as the content of a notes file.

    Args:
        notes: in any order; equal ones are written once.

    Returns:
        The lines, oldest first.
    """
    by_id = {note.note_id: note for note in notes}
    return b"".join(note.line() for note in sorted(by_id.values(), key=lambda note: note.time))


def open_todos(notes: Iterable[Note]) -> list[Note]:
    """Find the to-dos that no later note has closed.

    Args:
        notes: of a study.

    Returns:
        The open ones, oldest first.
    """
    notes = list(notes)
    done = {note.text for note in notes if note.kind is NoteKind.DONE}
    return [note for note in notes if note.kind is NoteKind.TODO and note.note_id not in done]


def check_group(name: str) -> str:
    """Check the name of a group of studies.

    Args:
        name: as typed.

    Returns:
        The name.

    Raises:
        InputError: it has other characters than a name may have.
    """
    if not re.fullmatch(GROUP_RULE, name):
        raise InputError(
            "a group must be named by up to 80 letters, digits, blanks, `_`, `.`, `+` or `-`, a letter or digit first "
            f"and last, but got {name[:100]!r}"
        )
    return name
