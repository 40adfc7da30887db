"""A full disk ends a study only where it is the study's own."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lowrank.errors import InputError
from sweeps.records import journal
from sweeps.records.journal import is_disk_full, is_study_disk_full
from sweeps.run import main
from sweeps.study.free_space import check_free_space

Usage = namedtuple("Usage", "total used free")
FULL, QUOTA = (OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT))
ELSEWHERE = Path("/proc/self")  # a file system of its own


@pytest.mark.parametrize(
    ("error", "full"),
    [(FULL, True), (QUOTA, True), (str(FULL), True), (str(QUOTA), True), (ValueError("no room"), False), ("", False)],
)
def test_errors_and_their_texts_say_that_a_disk_is_full(error, full):
    assert is_disk_full(error) == full


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_file_that_an_error_names_tells_which_disk(tmp_path, number, as_text):
    for path, expected in ((tmp_path / "new" / "file", True), (ELSEWHERE / "file", False)):
        error = OSError(number, os.strerror(number), str(path))
        shown = f"ray::step()\nOSError: {error}\n" if as_text else error
        assert is_study_disk_full(shown, tmp_path / "study") == expected


@pytest.mark.parametrize("error", ["I/O error: No space left on device (os error 28)", FULL])
@pytest.mark.parametrize(("free", "expected"), [(10**6, True), (10**12, False)])
def test_without_a_name_the_free_space_tells(tmp_path, monkeypatch, error, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**13, 0, free))
    assert is_study_disk_full(error, tmp_path) == expected


def test_a_quota_shows_only_when_a_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**13, 0, 10**12))

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    assert not is_study_disk_full(QUOTA, tmp_path)
    monkeypatch.setattr(journal.tempfile, "TemporaryFile", refuse)
    assert is_study_disk_full(QUOTA, tmp_path)


@pytest.mark.parametrize(("path", "code"), [("file", 3), ("/proc/self/file", 1)])
def test_a_disk_that_is_full_before_the_study_begins_is_one_line(tmp_path, monkeypatch, capsys, path, code):
    def fill(options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / path))

    monkeypatch.setattr("sweeps.run.dispatch", fill)
    assert main(["--space", "tt_dims", "--out", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("make room and give the command again" in error) == (code == 3)


def test_free_space_is_asked_before_a_study_starts(tmp_path, monkeypatch):
    folder = tmp_path / "studies" / "new"
    sizes = {"params": 10**6, "concurrent": 4, "trials": 100}  # 8 MB a checkpoint
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    assert check_free_space(folder, **sizes) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 80 * 10**6))
    warning = check_free_space(folder, **sizes)
    assert warning is not None
    assert f"the disk of {tmp_path} has" in warning
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 70 * 10**6))
    with pytest.raises(InputError, match=r"must have .* free for the checkpoints of 4 trials at once, but has .*--out"):
        check_free_space(folder, **sizes)
    assert not folder.exists()
