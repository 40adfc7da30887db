"""Processes of a machine share decoded images, but never through a folder that others can write."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lowrank.data import clear_cache
from lowrank.data.reading import disk_cache, image_store as stores
from tests.lowrank.data.test_parquet import load, write_set


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Use a temporary folder of the test, and cache small sets too."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.delenv(disk_cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(disk_cache.tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setattr(stores, "MIN_CACHED_BYTES", 0)
    clear_cache()
    yield folder
    clear_cache()


def cached_files(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("decoded-images-*/*.npy"))


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

    monkeypatch.setattr(disk_cache.np, "save", full)
    pixels = np.ones((2, 3, 3, 1), np.uint8)
    assert disk_cache.load_or_make(hashlib.sha256(b"x"), lambda: pixels) is pixels
    assert cached_files(temporary) == []


@pytest.mark.parametrize("how", ["a link", "open to others"])
def test_a_folder_that_others_can_write_is_not_used(temporary, tmp_path, how):
    folder = disk_cache.cache_folder()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    if how == "a link":
        folder.rmdir()
        folder.symlink_to(tmp_path)
    else:
        folder.chmod(0o777)
    assert disk_cache.cache_folder() is None
    pixels = np.ones((2, 3, 3, 1), np.uint8)
    assert disk_cache.load_or_make(hashlib.sha256(b"x"), lambda: pixels) is pixels


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "one byte more"])
def test_a_damaged_file_is_replaced(tmp_path, temporary, damage):
    write_set(tmp_path / "set")
    first = load(tmp_path / "set")
    pixels = first.train.images.clone()
    for path in cached_files(temporary):
        content = bytearray(path.read_bytes())
        if damage == "zeros":
            content[200:] = bytes(len(content) - 200)
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "one byte more": content + b"."}.get(damage, content)
        )
    clear_cache()
    again = load(tmp_path / "set")
    assert again.train.images.equal(pixels)
    assert again.fingerprint == first.fingerprint
    clear_cache()
    before = [path.stat().st_ino for path in cached_files(temporary)]
    load(tmp_path / "set")
    assert [path.stat().st_ino for path in cached_files(temporary)] == before  # the new files are whole


def test_another_version_of_the_decoder_decodes_again(tmp_path, temporary, monkeypatch):
    write_set(tmp_path / "set")
    load(tmp_path / "set")
    monkeypatch.setattr(stores, "DECODER_VERSION", 99)
    clear_cache()
    load(tmp_path / "set")
    assert len(cached_files(temporary)) == 6


def test_how_images_are_resized_is_part_of_the_key(tmp_path, temporary):
    write_set(tmp_path / "set")
    for changes in (
        {},
        {"image_size": 5},
        {"image_size": 5, "resize": "pad"},
        {"image_size": 5, "interpolation": "box"},
    ):
        load(tmp_path / "set", **changes)
    assert len(cached_files(temporary)) == 12


def test_the_files_that_were_longest_not_used_are_removed(temporary, monkeypatch):
    monkeypatch.setattr(disk_cache, "MAX_BYTES", 3_000)
    folder = disk_cache.cache_folder()

    def array(name: str) -> np.ndarray:
        return disk_cache.load_or_make(hashlib.sha256(name.encode()), lambda: np.full(1_000, ord(name), np.uint8))

    for name in "ab":
        array(name)
        for path in cached_files(temporary):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100))
    first, second = sorted(cached_files(temporary), key=lambda path: path.stat().st_mtime)
    assert array("a")[0] == ord("a")  # it is used again, so b is the oldest now
    array("c")
    assert first.exists()
    assert not second.exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000
    large = disk_cache.load_or_make(hashlib.sha256(b"large"), lambda: np.zeros(5_000, np.uint8))
    assert large.shape == (5_000,)
    assert len(cached_files(temporary)) == 2  # what cannot fit drives nothing out


def test_the_cache_takes_no_more_than_half_of_what_is_free(temporary, monkeypatch):
    folder = disk_cache.cache_folder()
    (folder / "x.npy").write_bytes(bytes(100))
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=900))
    assert disk_cache.room(folder) == 500
    assert disk_cache.make_room(folder, 450)
    assert not (folder / "x.npy").exists()
    assert not disk_cache.make_room(folder, 501)


def test_a_folder_of_the_users_own(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "large" / "disk"))
    write_set(tmp_path / "set")
    load(tmp_path / "set")
    assert len(list((tmp_path / "large" / "disk").glob("*.npy"))) == 3
    assert cached_files(temporary) == []


def test_a_process_that_comes_second_waits_and_takes_what_the_first_made(temporary):
    """Another process writes the file while this one waits for the lock."""
    folder, sha = disk_cache.cache_folder(), hashlib.sha256(b"x")
    path = folder / f"{sha.hexdigest()[:32]}.npy"

    @contextmanager
    def other_writes(*_, cancelled=None):
        assert disk_cache._write(path, np.ones(3, np.uint8))
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_cache, "hold_lock", other_writes)
        array = disk_cache.load_or_make(sha, lambda: pytest.fail("it was made twice"))
    assert array.tolist() == [1, 1, 1]
