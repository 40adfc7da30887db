"""Whoever waits for images judges a reader by its progress: in a process, in a thread, before the first batch too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank.data import DataSettings, clear_cache, load_data
from lowrank.data.dataset import Split
from lowrank.data.reading import disk_cache
from lowrank.data.reading.image_store import ArrayStore
from lowrank.data.reading_progress import READING
from lowrank.data.watched_loader import stream_images
from lowrank.errors import InputError, LoaderHungError
from lowrank.utils import IdleWatch, hold_lock, run_command
from tests.support.waiting import scaled

COUNT = 12
LIMIT = scaled(1.0)


def hang() -> None:
    threading.Event().wait()  # that nobody sets


class Store(ArrayStore):
    """Images whose reading does what a test says; each image has its own number as pixels."""

    def __init__(self, decode: Callable[[], None] = lambda: None, preload: Callable[[], None] = lambda: None):
        super().__init__(np.arange(COUNT, dtype=np.uint8).repeat(2).reshape(COUNT, 1, 2, 1))
        self._before, self._preload = decode, preload

    def decode(self, indices, threads=None):
        self._before()
        return super().decode(indices, threads)

    def preload(self, indices):
        self._preload()


def stream(store: Store, workers: int, seconds: float = LIMIT, batch_size: int = 5):
    split = Split(
        name="train", labels=torch.zeros(COUNT, dtype=torch.int64), indices=torch.arange(COUNT), resident=False,
        store=store,
    )  # fmt: skip
    return stream_images(split, torch.arange(COUNT).flip(0), batch_size, torch.device("cpu"), workers, seconds)


def slowly() -> None:
    """Longer than the limit in all, but never long without an image."""
    for _ in range(10):
        threading.Event().wait(LIMIT / 6)
        READING.step()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_however_many_decode(workers):
    batches = list(stream(Store(), workers, batch_size=5))
    assert torch.cat([positions for positions, _ in batches]).tolist() == list(range(COUNT))[::-1]
    assert torch.cat([images[:, 0, 0, 0] for _, images in batches]).tolist() == list(range(COUNT))[::-1]
    assert [images.shape for _, images in batches] == [(5, 1, 2, 1), (5, 1, 2, 1), (2, 1, 2, 1)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_takes_longer_than_the_limit_is_no_hang_while_images_come(workers):
    positions, _ = next(iter(stream(Store(decode=slowly), workers, batch_size=COUNT)))
    assert len(positions) == COUNT


def test_files_that_take_longer_to_prepare_than_the_limit_are_no_hang_while_they_are_read():
    assert len(list(stream(Store(preload=slowly), 1))) == 3


@pytest.mark.parametrize(
    ("store", "workers", "message"),
    [
        (Store(preload=hang), 1, "nothing of the images could be read for"),
        (Store(decode=hang), 0, "nothing of the images could be read for"),
        (Store(decode=hang), 1, "a process that decodes images made no progress for"),
    ],
    ids=["files", "first batch, no process", "first batch"],
)
def test_reading_that_hangs_is_given_up_wherever_it_does(store, workers, message):
    before = set(multiprocessing.active_children())
    with pytest.raises(LoaderHungError, match=message):
        next(stream(store, workers, seconds=0.4))
    assert set(multiprocessing.active_children()) == before


def test_a_process_that_is_killed_is_named_with_its_exit_code():
    batches = stream(Store(), 1, batch_size=1)
    next(batches)
    (process,) = (child for child in multiprocessing.active_children() if child.name == "decoder")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a process that decodes images ended with exit code -9"):
        list(batches)


def fail(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [InputError("x.png: broken"), PermissionError(13, "no", "x.png"), KeyError("x")])
def test_an_error_of_the_decoder_is_the_same_in_a_process(error, workers):
    with pytest.raises(type(error)) as caught:
        list(stream(Store(decode=fail(error)), workers))
    assert str(caught.value) == str(error)


def test_a_consumer_that_stops_early_leaves_no_process():
    before = set(multiprocessing.active_children())
    batches = stream(Store(), 2, batch_size=1)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) == before


def test_loading_a_set_that_hangs_is_given_up_with_one_line(tmp_path: Path, monkeypatch, capsys):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(6):
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / label / f"{number}.png")
    monkeypatch.setattr("lowrank.data.dataset.LOAD_SECONDS", 0.4)
    monkeypatch.setattr("lowrank.data.reading.image_folder.read_folder", lambda *_: hang())
    clear_cache()
    settings = DataSettings(name=f"folder:{tmp_path}", loader_seconds=0.4)
    assert run_command(lambda: len(load_data(settings).classes)) == 1
    assert capsys.readouterr().err == "error: nothing of the images could be read for 0.4 s\n"


def test_who_waits_for_another_process_counts_its_progress(tmp_path):
    lock = tmp_path / "lock"
    waiting = disk_cache._CountOtherProcess(lock)
    with hold_lock(lock):
        before = READING.count
        assert waiting() is False
        waiting()
        assert READING.count == before + 1
        os.utime(lock, ns=(1, 1))
        waiting()
        assert READING.count == before + 2


def test_the_process_that_makes_a_file_shows_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "_TOUCH_SECONDS", 0.0)
    with disk_cache.making(tmp_path, "x"):
        (lock,) = tmp_path.iterdir()
        os.utime(lock, ns=(1, 1))
        READING.step()
        assert lock.stat().st_mtime_ns > 1
        os.utime(lock, ns=(1, 1))
    READING.step()
    assert lock.stat().st_mtime_ns == 1


def test_a_watch_counts_from_the_last_progress(monkeypatch):
    now, progress = [0.0], [0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = IdleWatch(10, lambda: progress[0])
    for seconds, changes, idle in ((9, False, False), (11, True, False), (20, False, False), (22, False, True)):
        now[0], progress[0] = seconds, progress[0] + changes
        assert watch.is_idle() is idle
