"""A fetch loses nothing that the folder alone has, and takes nothing that is not whole."""

from __future__ import annotations

import os
import time

import pytest

from lowrank.errors import InputError
from sweeps.records import NoteKind, append_note, read_notes
from sweeps.records.journal import BusyError, study_lock
from sweeps.storage import mirror as mirror_module
from sweeps.storage.__main__ import main
from sweeps.storage.fetch import fetch_study, update_folder
from sweeps.storage.mirror import StudyMirror
from sweeps.storage.parts import PartsError
from sweeps.storage.remote import Storage

LINES = [f'{{"event": "epoch", "epoch": {number}}}\n' for number in range(5)]


def run_driver(storage, folder):
    mirror = StudyMirror(storage, folder, seconds=3600, stop_driver=lambda: None)
    mirror.claim()
    mirror.fetch()
    mirror.start()
    assert mirror.finish() is None


@pytest.fixture
def storage(tmp_path):
    return Storage((tmp_path / "stored").as_uri(), "small")


@pytest.fixture
def stored(storage, study, monkeypatch):
    """The study is stored, its journal in one part a line."""
    monkeypatch.setattr(mirror_module, "PART_BYTES", 1)
    mirror = StudyMirror(storage, study, seconds=3600, stop_driver=lambda: None)
    mirror.claim()
    mirror.fetch()
    for line in LINES:
        with (study / "journal.jsonl").open("a") as journal:
            journal.write(line)
        mirror.store_changes()
    mirror.finish()
    return storage


def part_files(storage):
    return sorted(storage.names("journal.jsonl.parts"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (0, r"begins at byte \d+ where byte 0 is next: a part before it is missing"),
        (2, r"begins at byte \d+ where byte \d+ is next: a part before it is missing"),
        (-1, r"only \d+ of \d+ bytes are there"),
    ],
    ids=["first", "middle", "last"],
)
def test_a_missing_part_is_said_and_nothing_is_fetched(stored, tmp_path, index, message):
    assert len(part_files(stored)) == len(LINES)
    stored.delete(part_files(stored)[index])
    with pytest.raises(PartsError, match=rf"journal.jsonl is not whole: .*{message}; nothing was fetched. Resume the"):
        fetch_study(stored.uri, "small", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_parts_of_another_content_are_refused(stored, tmp_path):
    name = part_files(stored)[2]
    stored.put(name, stored.get(name).replace(b"epoch", b"epocH"))
    with pytest.raises(PartsError, match=r"its first \d+ bytes are not those that its driver stored"):
        fetch_study(stored.uri, "small", tmp_path / "elsewhere")


def test_a_part_that_is_there_twice_is_refused(stored, tmp_path):
    name = part_files(stored)[2]
    offset, _, driver = name.rpartition("/")[2].partition("-")
    stored.put(f"journal.jsonl.parts/{int(offset) + 3:015d}-{driver}", stored.get(name))
    with pytest.raises(PartsError, match="a part is there twice"):
        fetch_study(stored.uri, "small", tmp_path / "elsewhere")


def test_the_machine_that_has_all_of_the_journal_stores_it_anew(stored, study, tmp_path, capsys):
    stored.delete(part_files(stored)[2])
    run_driver(stored, study)
    assert "is not whole" in capsys.readouterr().out
    fetched = fetch_study(stored.uri, "small", tmp_path / "elsewhere")
    assert (fetched / "journal.jsonl").read_bytes() == (study / "journal.jsonl").read_bytes()


def test_a_file_that_is_newer_than_its_stored_copy_is_left(stored, study):
    """The driver was killed on this machine before its last round."""
    checkpoint = study / "trials" / "a" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"newer")
    update_folder(stored, study)
    assert checkpoint.read_bytes() == b"newer"


@pytest.mark.parametrize("newer", [True, False])
def test_files_of_another_machine_replace_ours_and_lose_none_that_is_newer(stored, study, tmp_path, newer, capsys):
    elsewhere = fetch_study(stored.uri, "small", tmp_path / "elsewhere")
    (elsewhere / "trials" / "a" / "checkpoint.safetensors").write_bytes(b"theirs")
    with (elsewhere / "journal.jsonl").open("a") as journal:
        journal.write(LINES[0])
    run_driver(stored, elsewhere)
    checkpoint = study / "trials" / "a" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"ours")
    moment = time.time() + (3600 if newer else -3600)
    os.utime(checkpoint, (moment, moment))
    update_folder(stored, study)
    assert checkpoint.read_bytes() == b"theirs"
    others = [path for path in checkpoint.parent.iterdir() if path != checkpoint]
    assert [(path.name, path.read_bytes()) for path in others] == (
        [("checkpoint.safetensors.superseded", b"ours")] if newer else []
    )
    assert ("newer than the stored copy: 1 file of" in capsys.readouterr().out) == newer
    run_driver(stored, study)
    assert [name for name in stored.names() if "superseded" in name] == []


def test_a_running_study_is_not_fetched_over(stored, study, capsys):
    with study_lock(study):
        with pytest.raises(BusyError, match="the study 'small' is being run by another process"):
            fetch_study(stored.uri, "small", study.parent)
        assert main([stored.uri, "small", "--out", str(study.parent)]) == 2
    assert "is being run by another process" in capsys.readouterr().err


def test_the_command_names_the_folder_as_one_would_type_it(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([stored.uri, "small", "--out", "fetched here"]) == 0
    assert capsys.readouterr().out == (
        "fetched into fetched here/small; its trials in MLflow: python -m sweeps.tracking 'fetched here/small'\n"
    )


def test_a_storage_that_does_not_answer_is_one_line(stored, study, monkeypatch):
    def fails(self, name):
        raise OSError("no route\nto host")

    monkeypatch.setattr(Storage, "get", fails)
    with pytest.raises(InputError, match=r"file://.*: no route"):
        update_folder(stored, study)


def test_notes_of_two_machines_are_joined(stored, study, tmp_path):
    elsewhere = fetch_study(stored.uri, "small", tmp_path / "elsewhere")
    theirs = append_note(elsewhere, NoteKind.NOTE, "theirs")
    run_driver(stored, elsewhere)
    ours = append_note(study, NoteKind.NOTE, "ours")
    update_folder(stored, study)
    assert read_notes(study) == [theirs, ours]
    run_driver(stored, study)
    update_folder(stored, elsewhere)
    assert read_notes(elsewhere) == [theirs, ours]
