"""Small images that stay in memory are decoded by one process for each core, and give the same pixels."""

from __future__ import annotations

import errno
import io
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lowrank.data import DataSettings, clear_cache, dataset, decoder_process, load_data
from lowrank.data.reading import disk_cache, image_store
from lowrank.data.reading.parquet import read_parquet
from lowrank.errors import InputError

COUNT = 50


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with random images of 6 x 5 pixels in several row groups."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 5, 6, 3), dtype=np.uint8)
    table = pa.table({"img": [{"bytes": png(image)} for image in pixels], "label": [0, 1] * (COUNT // 2)})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=20)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of batches are small, and there are four cores; the slots of each process that was started."""
    slots: list[int] = []

    class Counted(decoder_process.DecoderProcess):
        def __init__(self, store: image_store.ImageStore, slot: int):
            slots.append(slot)
            super().__init__(store, slot)

    monkeypatch.setattr(decoder_process, "DecoderProcess", Counted)
    monkeypatch.setattr(decoder_process, "MIN_IMAGES", 10)
    monkeypatch.setattr(decoder_process, "_BATCH", 3)
    monkeypatch.setattr(decoder_process, "usable_cores", lambda: 4)
    return slots


def encoded(folder: Path) -> image_store.EncodedStore:
    store = read_parquet(folder, None, None).store
    assert isinstance(store, image_store.EncodedStore)
    store.set_shape((3, 5, 6), None)
    return store


@pytest.mark.parametrize(("count", "processes"), [(50, 4), (35, 3), (19, 0)])
def test_each_core_decodes_its_part_where_there_are_enough_images(images, started, count, processes):
    store, indices = encoded(images), np.random.default_rng(1).permutation(COUNT)[:count]
    np.testing.assert_array_equal(decoder_process.decode_all(store, indices), store.decode(indices))
    assert len(started) == processes
    assert not [child for child in multiprocessing.active_children() if child.name == "decoder"]


def test_large_images_are_decoded_by_threads(images, started, monkeypatch):
    monkeypatch.setattr(decoder_process, "SMALL_IMAGE", 5 * 6)
    assert len(decoder_process.decode_all(encoded(images), np.arange(COUNT))) == COUNT
    assert started == []


@pytest.mark.parametrize(
    ("threads", "small", "workers"), [(None, False, 4), (3, False, 3), (9, False, 4), (3, True, 2)]
)
def test_threads_are_at_most_those_that_are_asked_for_and_those_that_help(
    images: Path, threads: int | None, small: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class CountedPool(ThreadPoolExecutor):
        def __init__(self, count: int):
            counts.append(count)
            super().__init__(count)

    monkeypatch.setattr(image_store, "ThreadPoolExecutor", CountedPool)
    monkeypatch.setattr(image_store, "usable_cores", lambda: 4)
    monkeypatch.setattr(image_store, "_IMAGES_PER_TASK", 5)
    monkeypatch.setattr(image_store, "SMALL_IMAGE", 5 * 6 + small)
    assert len(encoded(images).decode(np.arange(COUNT), threads)) == COUNT
    assert counts == [workers]


def test_a_process_that_may_start_none_decodes_by_threads(images, started, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert len(decoder_process.decode_all(encoded(images), np.arange(COUNT))) == COUNT
    assert started == []


def test_a_broken_image_is_named_and_no_process_stays(images, started):
    table = pq.read_table(images / "train.parquet").to_pydict()
    table["img"][33]["bytes"] = table["img"][33]["bytes"][:60]
    pq.write_table(pa.table(table), images / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet, row 33.*`data\.skip_broken` leaves such images out"):
        decoder_process.decode_all(encoded(images), np.arange(COUNT))
    assert len(started) == 4
    assert not [child for child in multiprocessing.active_children() if child.name == "decoder"]


@pytest.mark.parametrize("obstacle", ["no folder", "no locks"])
def test_processes_that_cannot_share_a_file_decode_on_their_own_cores(obstacle, images, started, monkeypatch, tmp_path):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("LOWRANK_IMAGE_CACHE", str(folder))
    monkeypatch.setattr(image_store, "MIN_CACHED_BYTES", 20 * 5 * 6 * 3)
    monkeypatch.setattr(dataset.torch, "get_num_threads", lambda: 2)
    if obstacle == "no folder":
        folder.chmod(0o777)
    else:
        monkeypatch.setattr(disk_cache, "hold_lock", no_locks)
    clear_cache()
    assert load_data(DataSettings(name=f"parquet:{images}")).train.images.shape[1:] == (5, 6, 3)
    assert len(started) == 2  # of four cores


def test_a_set_that_stays_in_memory_is_decoded_so_once_for_each_machine(images, started, monkeypatch, tmp_path):
    monkeypatch.setenv("LOWRANK_IMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_store, "MIN_CACHED_BYTES", 20 * 5 * 6 * 3)
    settings = DataSettings(name=f"parquet:{images}")
    decoded, processes = [], []
    for _ in range(2):
        clear_cache()
        decoded.append(load_data(settings).train.images)
        processes.append(len(started))
    assert processes == [3, 3]  # 30 of the images are for training
    np.testing.assert_array_equal(decoded[0], decoded[1])
