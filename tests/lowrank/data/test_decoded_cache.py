"""Decoded images are shared by the processes of a machine: decoded once, the same to all, never a stranger's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lowrank.data import clear_cache
from lowrank.data.reading import decoded_cache as decoded
from lowrank.data.reading import image_store as stores
from tests.lowrank.data.test_parquet import load, write_set


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A temporary folder of the test's own, and no set too small to be kept."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(decoded.tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setattr(stores, "MIN_BYTES", 0)
    clear_cache()
    yield folder
    clear_cache()


def kept(place: Path) -> list[Path]:
    return sorted(place.glob("decoded-images-*/*"))


def test_a_second_process_decodes_nothing_and_sees_the_same(tmp_path, place, monkeypatch):
    _, test = write_set(tmp_path / "set")
    first = load(tmp_path / "set")
    assert np.array_equal(first.test.images.numpy(), test)
    assert len(kept(place)) == 3
    monkeypatch.setattr(stores, "decode_image", lambda *_: pytest.fail("it was decoded again"))
    clear_cache()
    second = load(tmp_path / "set")
    assert second.fingerprint == first.fingerprint
    assert second.train.images.equal(first.train.images)
    assert np.array_equal(second.test.images.numpy(), test)


def test_who_writes_to_its_images_changes_no_file(tmp_path, place):
    write_set(tmp_path / "set")
    load(tmp_path / "set").train.images.zero_()
    before = [path.read_bytes() for path in kept(place)]
    clear_cache()
    load(tmp_path / "set").train.images.zero_()
    clear_cache()
    assert load(tmp_path / "set").train.images.any()
    assert [path.read_bytes() for path in kept(place)] == before


def test_other_bytes_are_decoded_anew(tmp_path, place):
    write_set(tmp_path / "set")
    load(tmp_path / "set")
    clear_cache()
    write_set(tmp_path / "other", 60)
    assert len(load(tmp_path / "other").train) == 48
    assert len(kept(place)) > 3


def test_a_full_disk_keeps_nothing(place, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.np, "save", full)
    pixels = np.ones((2, 3, 3, 1), np.uint8)
    assert decoded.load_or_decode(hashlib.sha256(b"x"), lambda: pixels) is pixels
    assert kept(place) == []


@pytest.mark.parametrize("how", ["a link", "open to others"])
def test_a_folder_that_is_not_the_users_alone_is_not_used(place, tmp_path, how):
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
