"""Processes of a machine share decoded images, but never through a folder that others can write."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lowrank.data import clear_cache
from lowrank.data.reading import decoded_cache as decoded, image_store as stores
from tests.lowrank.data.test_parquet import load, write_set


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Use a temporary folder of the test, and cache small sets too."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(decoded.tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setattr(stores, "MIN_BYTES", 0)
    clear_cache()
    yield folder
    clear_cache()


def cached_files(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("decoded-images-*/*"))


def test_a_second_process_decodes_nothing_and_sees_the_same(tmp_path, temporary, monkeypatch):
    _, test = write_set(tmp_path / "set")
    first = load(tmp_path / "set")
    assert np.array_equal(first.test.images.numpy(), test)
    assert len(cached_files(temporary)) == 3
    monkeypatch.setattr(stores, "decode_image", lambda *_: pytest.fail("it was decoded again"))
    clear_cache()
    second = load(tmp_path / "set")
    assert second.fingerprint == first.fingerprint
    assert second.train.images.equal(first.train.images)
    assert np.array_equal(second.test.images.numpy(), test)


def test_writing_to_loaded_images_changes_no_file(tmp_path, temporary):
    write_set(tmp_path / "set")
    load(tmp_path / "set").train.images.zero_()
    before = [path.read_bytes() for path in cached_files(temporary)]
    clear_cache()
    load(tmp_path / "set").train.images.zero_()
    clear_cache()
    assert load(tmp_path / "set").train.images.any()
    assert [path.read_bytes() for path in cached_files(temporary)] == before


def test_other_encoded_bytes_are_decoded_again(tmp_path, temporary):
    write_set(tmp_path / "set")
    load(tmp_path / "set")
    clear_cache()
    write_set(tmp_path / "other", 60)
    assert len(load(tmp_path / "other").train) == 48
    assert len(cached_files(temporary)) > 3


def test_on_a_full_disk_no_file_is_written(temporary, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.np, "save", full)
    pixels = np.ones((2, 3, 3, 1), np.uint8)
    assert decoded.load_or_decode(hashlib.sha256(b"x"), lambda: pixels) is pixels
    assert cached_files(temporary) == []


@pytest.mark.parametrize("how", ["a link", "open to others"])
def test_a_folder_that_others_can_write_is_not_used(temporary, tmp_path, how):
    folder = decoded.cache_folder()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    if how == "a link":
        folder.rmdir()
        folder.symlink_to(tmp_path)
    else:
        folder.chmod(0o777)
    assert decoded.cache_folder() is None
    pixels = np.ones((2, 3, 3, 1), np.uint8)
    assert decoded.load_or_decode(hashlib.sha256(b"x"), lambda: pixels) is pixels
