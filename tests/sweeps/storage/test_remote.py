"""A study at a URI: mirrored as it grows, whole at any moment, run by one driver at a time."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from lowrank.errors import InputError
from sweeps.storage import mirror as mirror_module
from sweeps.storage.__main__ import main
from sweeps.storage.claims import DRIVER_FILE
from sweeps.storage.fetch import fetch_study, update_folder
from sweeps.storage.lease import LEASE_SECONDS
from sweeps.storage.mirror import StudyMirror
from sweeps.storage.remote import Storage, list_stored_studies, storage_uri


def content(folder):
    names = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("mlflow.db", "driver.lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def started_mirror(uri, folder):
    """One that stores only when a test says so."""
    mirror = StudyMirror(Storage(uri, folder.name), folder, seconds=3600, stop_driver=lambda: None)
    mirror.claim()
    mirror.fetch()
    mirror.start()
    return mirror


def test_a_mirrored_study_is_fetched_on_another_machine(uri, study, tmp_path):
    mirror = started_mirror(uri, study)
    mirror.store_changes()
    with (study / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "epoch"}\n{"torn')
    with (study / "optuna.journal").open("a") as memory:
        memory.write('{"op": 4}\n')
    assert mirror.finish() is None
    assert list_stored_studies(uri) == ["small"]
    fetched = fetch_study(uri, "small", tmp_path / "elsewhere")
    expected = content(study)
    expected["journal.jsonl"] = expected["journal.jsonl"].removesuffix(b'{"torn')
    assert content(fetched) == expected
    assert DRIVER_FILE not in Storage(uri, "small").names()


def test_a_growing_file_is_sent_in_parts_of_bounded_size(uri, study, monkeypatch):
    monkeypatch.setattr(mirror_module, "PART_BYTES", 100)
    mirror = started_mirror(uri, study)
    line = json.dumps({"event": "epoch", "x": "y" * 20}) + "\n"
    for _ in range(20):
        with (study / "journal.jsonl").open("a") as journal:
            journal.write(line)
        mirror.store_changes()
    parts = Storage(uri, "small").names("journal.jsonl.parts")
    assert 4 <= len(parts) <= 12
    assert max(parts.values()) < 100 + len(line)
    assert Storage(uri, "small").read_parts("journal.jsonl") == (study / "journal.jsonl").read_bytes()
    mirror.finish()


def test_the_journal_is_measured_first_and_stored_last(study, tmp_path, monkeypatch):
    mirror = started_mirror((tmp_path / "stored").as_uri(), study)
    sent = []
    put = Storage.put

    def noted(self, name, content):
        sent.append(name)
        with (study / "journal.jsonl").open("a") as journal:  # the driver writes on meanwhile
            journal.write('{"event": "finished"}\n')
        put(self, name, content)

    monkeypatch.setattr(Storage, "put", noted)
    before = (study / "journal.jsonl").read_bytes()
    mirror.store_changes()
    journal = next(index for index, name in enumerate(sent) if name.startswith("journal.jsonl"))
    optuna = next(index for index, name in enumerate(sent) if name.startswith("optuna.journal"))
    assert sent.index("trials/a/checkpoint.safetensors") < optuna < journal
    assert mirror.storage.read_parts("journal.jsonl") == before
    monkeypatch.undo()
    mirror.finish()


@pytest.mark.parametrize(("status", "remaining"), [("stopped_early", []), ("completed", ["checkpoint.safetensors"])])
def test_what_the_search_has_dropped_is_removed_from_the_storage_too(uri, study, status, remaining):
    (study / "trials" / "a" / "checkpoint.1.safetensors").write_bytes(b"older")
    (study / "trials" / "a" / "checkpoint.safetensors.unusable-2").write_bytes(b"damaged")
    mirror = started_mirror(uri, study)
    mirror.store_changes()
    assert len(Storage(uri, "small").names("trials")) == 3
    with (study / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"event": "finished", "trial": "a", "status": status}) + "\n")
    for path in (study / "trials" / "a").iterdir():
        path.unlink()
    mirror.finish()
    assert [name.rpartition("/")[2] for name in Storage(uri, "small").names("trials")] == remaining


def test_files_that_somebody_removes_from_a_running_study_stay_in_the_storage(uri, study):
    mirror = started_mirror(uri, study)
    mirror.store_changes()
    shutil.rmtree(study / "trials")
    mirror.finish()
    assert list(Storage(uri, "small").names("trials")) == ["trials/a/checkpoint.safetensors"]


def test_files_that_are_missing_at_a_resume_are_fetched_and_not_deleted(uri, study):
    started_mirror(uri, study).finish()
    shutil.rmtree(study / "trials")
    with (study / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "epoch"}\n')  # the folder is ahead of the storage
    started_mirror(uri, study).finish()
    assert (study / "trials" / "a" / "checkpoint.safetensors").read_bytes() == b"weights"
    assert list(Storage(uri, "small").names("trials")) == ["trials/a/checkpoint.safetensors"]


def test_a_resume_goes_on_where_the_storage_ends(uri, study, tmp_path):
    started_mirror(uri, study).finish()
    fetched = fetch_study(uri, "small", tmp_path / "elsewhere")
    resumed = started_mirror(uri, fetched)
    with (fetched / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "study"}\n')
    resumed.finish()
    assert Storage(uri, "small").read_parts("journal.jsonl") == (fetched / "journal.jsonl").read_bytes()


def test_a_folder_that_is_ahead_is_kept(uri, study):
    started_mirror(uri, study).finish()
    with (study / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "epoch"}\n')
    before = content(study)
    update_folder(Storage(uri, "small"), study)
    assert content(study) == before


def test_two_histories_are_not_mixed(uri, study):
    started_mirror(uri, study).finish()
    (study / "journal.jsonl").write_text('{"event": "another"}\n')
    with pytest.raises(InputError, match="hold two different histories of 'small'; move the folder away"):
        update_folder(Storage(uri, "small"), study)


def test_the_storage_measures_how_long_a_driver_is_silent(uri, study, monkeypatch):
    """Whatever the clock of this machine says: it may have jumped."""
    storage = Storage(uri, "small")
    storage.put(DRIVER_FILE, b"")
    assert 0 <= storage.age(DRIVER_FILE) < LEASE_SECONDS / 2
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert 0 <= storage.age(DRIVER_FILE) < LEASE_SECONDS / 2
    assert list(storage.names()) == [DRIVER_FILE]


def test_an_outage_is_reported_and_made_up_for(study, tmp_path, monkeypatch):
    mirror = started_mirror((tmp_path / "stored").as_uri(), study)

    def fails(self, name, content):
        raise OSError("no route")

    monkeypatch.setattr(Storage, "put", fails)
    assert "lacks what came last (no route); nothing is lost" in mirror.finish()
    monkeypatch.undo()
    started_mirror((tmp_path / "stored").as_uri(), study).finish()
    assert content(fetch_study((tmp_path / "stored").as_uri(), "small", tmp_path / "elsewhere")) == content(study)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nope://there", "--storage must be a folder or a URI such as s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/prefix", "--storage must not carry a secret: leave the key out of the URI"),
        ("file:///proc/nothing", "--storage file:///proc/nothing cannot be written"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(storage, message):
    with pytest.raises(InputError, match=message) as caught:
        storage_uri(storage)
    assert "\n" not in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_a_folder_is_no_uri():
    assert storage_uri("/mnt/shared") is None
    assert storage_uri(None) is None


def test_an_unknown_study_names_those_there_are(uri, study, capsys, tmp_path):
    started_mirror(uri, study).finish()
    assert main([uri, "other", "--out", str(tmp_path / "here")]) == 2
    assert "no study 'other' in" in capsys.readouterr().err
    assert main([uri, "small", "--out", str(tmp_path / "here")]) == 0
    assert "python -m sweeps.tracking" in capsys.readouterr().out
    assert os.listdir(tmp_path / "here") == ["small"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"token": "a"}', b"\xff"])
def test_a_damaged_lease_is_one_line_and_does_not_end_the_mirror(study, tmp_path, content):
    uri = (tmp_path / "stored").as_uri()
    mirror = started_mirror(uri, study)
    storage = Storage(uri, "small")
    storage.put(DRIVER_FILE, content)
    error = mirror._try(mirror.lease.renew)  # said by the thread, which tries on
    assert error is not None
    assert "driver.json is damaged and does not say who runs the study" in error
    with pytest.raises(InputError, match=r"driver.json is damaged .*; if no other driver does, delete it"):
        StudyMirror(storage, study).claim()
    storage.delete(DRIVER_FILE)
    assert mirror.finish() is None


@pytest.mark.parametrize("name", ["../outside", "trials/../../outside", "/outside", "trials\\..\\outside", ".."])
def test_an_object_whose_name_leads_out_of_the_study_is_refused(study, tmp_path, monkeypatch, name):
    uri = (tmp_path / "stored").as_uri()
    started_mirror(uri, study).finish()
    names = Storage.names

    def forged(self, under=""):
        return names(self, under) | ({} if under or not self._root.endswith("small") else {name: 3})

    monkeypatch.setattr(Storage, "names", forged)
    monkeypatch.setattr(Storage, "get", lambda self, name: b"theirs")
    with pytest.raises(InputError, match="holds an object whose name lies outside the study"):
        update_folder(Storage(uri, "small"), tmp_path / "elsewhere" / "small")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../small", "..", "a/b", "-small"])
def test_a_study_with_a_name_that_is_a_path_is_not_fetched(study, tmp_path, name):
    uri = (tmp_path / "stored").as_uri()
    started_mirror(uri, study).finish()
    with pytest.raises(InputError, match="the name of a study must be up to 80 letters"):
        fetch_study(uri, name, tmp_path / "elsewhere")
