"""`python -m analysis note STUDY [TRIAL] "text"`: keep a note, a takeaway or a to-do for the log.

Notes lie in the study's folder (`notes.jsonl`), and can be written while the study runs. The name of a group is a tag
of the study, as `--group` of the driver sets it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.cli.arguments import add_study, refuse_script
from analysis.sources import push_if_tracked
from lowrank.errors import InputError, unknown
from lowrank.utils import LockedError
from sweeps.records import (
    GROUP_TAG,
    JOURNAL_FILE,
    BusyError,
    Event,
    NoteKind,
    append_note,
    check_group,
    check_note,
    find_study,
    find_trial,
    load_study,
    locked_journal,
    open_todos,
    read_notes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `note`.

    Args:
        parser: receives them.
    """
    add_study(parser)
    parser.add_argument(
        "words", nargs="*", metavar="[TRIAL] TEXT", help="the note, before it the id of a trial or its beginning"
    )
    kind = parser.add_mutually_exclusive_group()
    # The text may also stand behind the flag, where argparse would not know it for a word
    kind.add_argument(
        "--takeaway", nargs="?", const=True, metavar="TEXT", help="what the study has taught, for the head of the log"
    )
    kind.add_argument(
        "--todo", nargs="?", const=True, metavar="TEXT", help="what is left to do, for the head until it is done"
    )
    kind.add_argument("--done", metavar="ID", help="a to-do is done; the log and --list show the ids")
    kind.add_argument("--list", action="store_true", help="show the notes")
    parser.add_argument("--group", metavar="NAME", help="the studies that this one belongs to")


def run(arguments: argparse.Namespace) -> int:
    """Keep a note and print what was kept.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study, trial or open to-do, no text or too long a one, the notes are damaged, or a
            driver runs the study that is to be put into a group; nothing has been written.
    """
    folder = find_study(arguments.study, arguments.studies)
    flag, kind, behind = _kind(arguments)
    words = [*arguments.words, *behind]
    if len(words) > 2:
        raise InputError(f"a note must be one text in quotes, before it at most a trial, but got {len(words)} words")
    if arguments.list or arguments.done:
        if words or arguments.group:
            raise InputError(f"--{'list' if arguments.list else 'done'} takes no text and no --group")
        return _list(folder) if arguments.list else _close(folder, arguments.done)
    if not words and arguments.group is None:
        raise InputError("note needs a text, --group NAME, --done ID or --list")
    if not words and flag:
        raise InputError(f"--{flag} needs a text")
    text = check_note(words[-1]) if words else ""
    group = None if arguments.group is None else check_group(arguments.group)
    trial = find_trial(load_study(folder), words[0]).trial_id if len(words) == 2 else ""
    read_notes(folder)  # damaged notes are repaired before others follow
    if group is not None:
        _set_group(folder, group)
    if text:
        _append(folder, kind, text, trial)
    return 0


def _kind(arguments: argparse.Namespace) -> tuple[str, NoteKind, list[str]]:
    """The flag that says what the note is, "" for none; the kind; and the text behind the flag, if there is one."""
    for flag, kind in (("takeaway", NoteKind.TAKEAWAY), ("todo", NoteKind.TODO)):
        value = getattr(arguments, flag)
        if value is not None:
            return flag, kind, [] if value is True else [value]
    return "", NoteKind.NOTE, []


def _append(folder: Path, kind: NoteKind, text: str, trial: str = "") -> None:
    try:
        note = append_note(folder, kind, text, trial)
    except LockedError as error:
        raise InputError(f"another process is writing notes on {folder.name!r}; try again") from error
    subject = f"trial {trial} of {folder.name}" if trial else folder.name
    print(f"{kind} {note.note_id} on {subject}: python -m analysis log shows it")


def _close(folder: Path, note_id: str) -> int:
    todos = {note.note_id: note for note in open_todos(read_notes(folder))}
    matches = [identity for identity in todos if identity.startswith(note_id)]
    if len(matches) != 1:
        raise unknown("open to-do", note_id, list(todos) or ["none: all are done"])
    append_note(folder, NoteKind.DONE, matches[0])
    print(f"done: {todos[matches[0]].text}")
    return 0


def _list(folder: Path) -> int:
    notes = read_notes(folder)
    still_open = {note.note_id for note in open_todos(notes)}
    for note in notes:
        if note.kind is not NoteKind.DONE:
            state = " (done)" if note.kind is NoteKind.TODO and note.note_id not in still_open else ""
            trial = f"trial {note.trial}: " if note.trial else ""
            print(f"{note.note_id} {note.kind}{state}: {trial}{note.text}")
    if not notes:
        print(f"no notes on {folder.name}")
    return 0


def _set_group(folder: Path, group: str) -> None:
    if not (folder / JOURNAL_FILE).is_file():
        raise InputError(f"a group is kept in the study's journal, but {folder} has only tables")
    try:
        with locked_journal(folder) as journal:
            journal.append(Event.ANNOTATED, sync=True, note="", tags={GROUP_TAG: group})
    except BusyError as error:
        raise InputError(f"{error}; name its group when it has ended, or with --group of --resume") from error
    print(f"{folder.name} belongs to the group {group!r} from now on")
    push_if_tracked(load_study(folder), folder)


if __name__ == "__main__":
    sys.exit(refuse_script("note"))
