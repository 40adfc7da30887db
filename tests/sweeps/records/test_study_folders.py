"""A study's folder is taken before anything long, by one command; nothing stays of a study that did not begin."""

from __future__ import annotations

import shutil

import pytest

from lowrank.errors import InputError
from sweeps.records.journal import BusyError, FullDiskError, study_lock
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE, SERIES_FILE
from sweeps.records.study_folders import hold_new_study_folder, hold_study_folder, resume_command
from sweeps.run import main


def test_two_commands_at_once_begin_two_studies(tmp_path):
    with hold_new_study_folder(tmp_path, None, "small") as first, hold_new_study_folder(tmp_path, None, "small") as two:
        assert [first.name, two.name] == ["small", "small_2"]
        with pytest.raises(BusyError, match="the study 'small' is being run by another process"):
            hold_new_study_folder(tmp_path, "small", "small").__enter__()


def test_a_name_that_a_study_has_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / JOURNAL_FILE).write_text("")
    with pytest.raises(InputError, match=r"the study 'mine' exists in .*; --resume mine continues it"):
        hold_new_study_folder(tmp_path, "mine", "small").__enter__()
    with pytest.raises(InputError, match="the study 'stored' exists in the storage"):
        hold_new_study_folder(tmp_path, "stored", "small", ["stored"]).__enter__()


def test_a_study_that_did_not_begin_leaves_nothing(tmp_path):
    root = tmp_path / "far" / "studies"
    with hold_new_study_folder(root, None, "small") as folder:
        (folder / "step_times.json").write_text("{}")
        (folder / "trials").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_has_begun_stays(tmp_path):
    with hold_new_study_folder(tmp_path, None, "small") as folder:
        (folder / JOURNAL_FILE).write_text("{}\n")
    assert (folder / JOURNAL_FILE).read_text() == "{}\n"


def test_a_folder_above_that_others_use_stays(tmp_path):
    with hold_study_folder(tmp_path / "studies" / "small"):
        (tmp_path / "studies" / "other").mkdir()
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["small", None])
def test_the_lock_of_a_command_that_was_killed_before_its_study_began_is_no_study(tmp_path, name):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / LOCK_FILE).touch()
    with hold_new_study_folder(tmp_path, name, "small") as folder:
        assert folder.name == "small"


def test_a_lock_that_its_last_holder_has_removed_is_taken_again(tmp_path, monkeypatch):
    """Between the opening of the lock and the locking the folder goes, and another command makes it anew."""
    folder = tmp_path / "small"
    removed = []

    def overtaken(path):
        if not removed:
            removed.append(path)
            shutil.rmtree(path)
        return study_lock(path)

    monkeypatch.setattr("sweeps.records.study_folders.study_lock", overtaken)
    with hold_study_folder(folder):
        assert removed == [folder]
        with pytest.raises(BusyError):
            study_lock(folder).__enter__()


def test_the_command_that_goes_on_names_the_series_with_its_folder_and_storage(tmp_path, monkeypatch, capsys):
    """The member of a series is no study that --resume finds."""
    member = tmp_path / "both" / "plain"
    member.mkdir(parents=True)
    assert resume_command(member).split()[2:] == ["--resume", "plain", "--out", str(tmp_path / "both")]
    (tmp_path / "both" / SERIES_FILE).write_text("")
    command = f"python sweeps/run.py --resume both --out {tmp_path}"
    assert resume_command(member) == command
    assert resume_command(member, "s3://bucket/both") == f"{command} --storage s3://bucket"

    def fill(options: object) -> int:
        raise FullDiskError(member / JOURNAL_FILE)

    monkeypatch.setattr("sweeps.run.dispatch", fill)
    assert main(["--space", "tt_dims"]) == 3
    assert capsys.readouterr().err.endswith(f"make room and go on with: {command}\n")
