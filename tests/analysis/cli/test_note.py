"""`python -m analysis note`: a note, a takeaway or a to-do; and the group of a study, which `compare` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.__main__ import main
from sweeps.records import NOTES_FILE, NoteKind, load_study, locked_journal, read_group, read_notes
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path / "studies" / "small", Plan(name="small", trials=8, epochs=2))


def test_notes_are_kept_with_their_kind_and_trial(folder, capsys):
    trial = next(iter(load_study(folder).trials))
    with locked_journal(folder):  # a driver is at work
        assert main(["note", "small", "plain"]) == 0
        assert main(["note", "small", trial[:6], "of a trial", "--takeaway"]) == 0
        assert main(["note", "small", "--todo", "more seeds"]) == 0
    notes = read_notes(folder)
    assert [(note.kind, note.text, note.trial) for note in notes] == [
        (NoteKind.NOTE, "plain", ""), (NoteKind.TAKEAWAY, "of a trial", trial), (NoteKind.TODO, "more seeds", ""),
    ]  # fmt: skip
    assert main(["note", "small", "--done", notes[2].note_id[:4]]) == 0
    assert "done: more seeds" in capsys.readouterr().out
    assert main(["note", "small", "--list"]) == 0
    assert f"{notes[2].note_id} todo (done): more seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "note needs a text, --group NAME, --done ID or --list"),
        (["--todo"], "note needs a text"),
        (["--todo", "--group", "a"], "--todo needs a text"),
        (["a", "b", "c"], "must be one text in quotes, before it at most a trial, but got 3 words"),
        (["0000", "text"], "'0000' must be the id of one trial of 'small', or its beginning; found: none"),
        ([" "], "a note must have 1 to 2,000 characters, but got 0"),
        (["--done", "12"], "unknown open to-do '12'; choose from: none: all are done"),
        (["text", "--list"], "--list takes no text and no --group"),
        (["--group", "it's"], "a group must be named by"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(folder, words, message, capsys):
    before = (folder / "journal.jsonl").read_bytes()
    assert main(["note", "small", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / NOTES_FILE).exists()
    assert (folder / "journal.jsonl").read_bytes() == before


def test_a_group_is_a_tag_of_the_study_unless_a_driver_is_at_work(folder, capsys):
    with locked_journal(folder):
        assert main(["note", "small", "--group", "broken lr"]) == 2
    assert "name its group when it has ended, or with --group of --resume" in capsys.readouterr().err
    assert main(["note", "small", "one text", "--group", "broken lr"]) == 0
    assert read_group(folder) == load_study(folder).tags["group"] == "broken lr"
    assert [note.text for note in read_notes(folder)] == ["one text"]


def test_compare_takes_a_group(folder, tmp_path, capsys):
    write_study(tmp_path / "studies" / "other", Plan(name="other", trials=8, epochs=2, seed=1))
    write_study(tmp_path / "studies" / "third", Plan(name="third", trials=8, epochs=2, seed=2))
    for name in ("small", "other"):
        assert main(["note", name, "--group", "initial runs"]) == 0
    assert main(["compare", "--group", "initial runs"]) == 0
    page = (tmp_path / "studies" / "comparisons" / "initial runs" / "comparison.html").read_text()
    assert "other" in page
    assert "third" not in page
    capsys.readouterr()
    assert main(["compare", "--group", "late runs"]) == 2
    assert "unknown group 'late runs'; choose from: initial runs" in capsys.readouterr().err
    assert main(["note", "other", "--group", "late runs"]) == 0
    assert main(["compare", "--group", "late runs"]) == 2
    assert "two studies or more, but got 1 (other with the group 'late runs')" in capsys.readouterr().err
