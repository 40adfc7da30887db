"""Notes, to-dos and groups of a study: kept beside the journal, joined by line, and read back whole."""

from __future__ import annotations

import pytest

from lowrank.errors import InputError
from sweeps.records import (
    JOURNAL_FILE,
    NOTES_FILE,
    RESULTS_FILE,
    Event,
    Journal,
    NoteKind,
    append_note,
    check_group,
    load_history,
    load_study,
    locked_journal,
    notes_to_bytes,
    open_todos,
    parse_notes,
    parse_tags,
    read_group,
    read_notes,
    write_tables,
)
from tests.support.synthetic_study import Plan, write_study


def test_notes_are_read_as_they_were_written_oldest_first(tmp_path):
    texts = ["one\n\ntwo", '"quotes", {braces} and ÄÖÜ', "\u2028"]
    written = [append_note(tmp_path, NoteKind.NOTE, text, "abcd") for text in texts]
    assert read_notes(tmp_path) == written
    assert [note.text for note in written] == texts
    assert (tmp_path / NOTES_FILE).read_bytes().count(b"\n") == 3


def test_a_note_can_be_written_while_a_driver_holds_the_study(tmp_path):
    with locked_journal(write_study(tmp_path, Plan(trials=1))):
        append_note(tmp_path, NoteKind.TAKEAWAY, "as it runs")
    assert [note.kind for note in read_notes(tmp_path)] == [NoteKind.TAKEAWAY]


def test_a_to_do_is_open_until_it_is_done(tmp_path):
    first = append_note(tmp_path, NoteKind.TODO, "more seeds")
    second = append_note(tmp_path, NoteKind.TODO, "other rates")
    append_note(tmp_path, NoteKind.DONE, first.note_id)
    assert open_todos(read_notes(tmp_path)) == [second]


def test_a_torn_last_line_is_cut_off_by_the_next_note(tmp_path):
    first = append_note(tmp_path, NoteKind.NOTE, "whole")
    path = tmp_path / NOTES_FILE
    path.write_bytes(path.read_bytes() + b'{"id":"12')
    assert read_notes(tmp_path) == [first]
    second = append_note(tmp_path, NoteKind.NOTE, "next")
    assert read_notes(tmp_path) == [first, second]


@pytest.mark.parametrize("line", [b"[1]\n", b"{}\n", b"\xff\n", b'{"id":"x","kind":"note"}\n', b"no JSON\n"])
def test_a_damaged_line_is_named_and_says_how_to_repair(tmp_path, line):
    first = append_note(tmp_path, NoteKind.NOTE, "whole")
    path = tmp_path / NOTES_FILE
    path.write_bytes(path.read_bytes() + line)
    assert parse_notes(path.read_bytes())[0] == [first]
    with pytest.raises(InputError, match=r"notes.jsonl: line 2 is damaged: .*`python -m analysis repair .*` leaves it"):
        read_notes(tmp_path)


def test_a_changed_text_is_damage(tmp_path):
    append_note(tmp_path, NoteKind.NOTE, "error 5.2 %")
    path = tmp_path / NOTES_FILE
    path.write_bytes(path.read_bytes().replace(b"5.2", b"1.2"))
    assert parse_notes(path.read_bytes()) == ([], ["line 1 is damaged: its id does not fit its content"])


def test_equal_notes_are_written_once(tmp_path):
    note = append_note(tmp_path, NoteKind.NOTE, "once")
    assert parse_notes(notes_to_bytes([note, note])) == ([note], [])


@pytest.mark.parametrize("name", ["initial runs", "broken lr", "v1.2+x_y-3", "Größe", "a"])
def test_a_group_may_be_named_so(name):
    assert check_group(name) == name


@pytest.mark.parametrize("name", ["", " a", "a ", "it's", 'a"b', "a\nb", "../a", "x" * 81, "a|b", "<b>"])
def test_a_group_may_not_be_named_so(name):
    with pytest.raises(InputError, match="a group must be named by up to 80 letters"):
        check_group(name)


def test_a_tag_cannot_stand_for_a_group():
    with pytest.raises(InputError, match="the tag 'group' is reserved"):
        parse_tags(["group=mine"])


def test_the_newest_group_counts_in_journal_and_tables(tmp_path):
    folder = write_study(tmp_path, Plan(trials=2))
    assert read_group(folder) == ""
    journal = Journal(folder / JOURNAL_FILE)
    trial = next(iter(load_study(folder).trials))
    for fields in (
        {"note": "", "tags": {"group": "first"}}, {"note": "x", "tags": {"group": "second"}},
        {"note": '"noted"', "tags": {}}, {"trial": trial, "note": "of a trial", "tags": {"group": "third"}},
    ):  # fmt: skip
        journal.append(Event.ANNOTATED, **fields)
    journal.close()
    assert read_group(folder) == load_study(folder).tags["group"] == "second"
    write_tables(load_study(folder), folder)
    (folder / JOURNAL_FILE).unlink()
    assert read_group(folder) == "second"
    (folder / RESULTS_FILE).write_bytes(b"no table")
    with pytest.raises(InputError, match="is damaged"):
        read_group(folder)


def test_a_history_has_what_driver_and_people_did(tmp_path):
    folder = write_study(tmp_path, Plan(trials=2))
    trial = next(iter(load_study(folder).trials))
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.EXCLUDED, trial=trial, broken="a dead fan")
    journal.append(Event.ANNOTATED, note="odd", tags={})
    journal.close()
    history = load_history(folder)
    kinds = [event["event"] for event in history.events]
    assert kinds == [Event.STUDY, Event.CLOSED, Event.EXCLUDED, Event.ANNOTATED]
    assert history.study == load_study(folder)
    write_tables(history.study, folder)
    (folder / JOURNAL_FILE).unlink()
    assert [event["event"] for event in load_history(folder).events] == [Event.STUDY, Event.CLOSED]
