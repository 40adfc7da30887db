"""Whoever waits for images judges a reader by its progress: in a process, in a thread, before the first batch too."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank.data import DataSettings, clear_cache, load_data
from lowrank.data.dataset import Split
from lowrank.data.decoder_process import PREFETCHED
from lowrank.data.reading import disk_cache
from lowrank.data.reading.image_store import ArrayStore
from lowrank.data.reading_progress import READING
from lowrank.data.watched_loader import MIN_SLOT, DecoderPool, stream_images
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


def make_split(store: ArrayStore, count: int = COUNT) -> Split:
    return Split(
        name="train", labels=torch.zeros(count, dtype=torch.int64), indices=torch.arange(count), resident=False,
        store=store,
    )  # fmt: skip


def stream(store: Store, workers: int, seconds: float = LIMIT, batch_size: int = 5):
    order = torch.arange(COUNT).flip(0)
    return stream_images(make_split(store), order, batch_size, torch.device("cpu"), workers, seconds)


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


@pytest.fixture
def pool():
    with closing(DecoderPool()) as pool:
        yield pool


def values(pool: DecoderPool, store: ArrayStore, order: list[int], batch_size: int = 2, workers: int = 2) -> list[int]:
    """The images of a pass, which have their own numbers as pixels."""
    split, positions = make_split(store, max(order) + 1), torch.tensor(order)
    batches = pool.stream(split, positions, batch_size, torch.device("cpu"), workers, LIMIT)
    return torch.cat([images[:, 0, 0, 0] for _, images in batches]).tolist()


def decoder_pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.name == "decoder"}


def test_processes_decode_one_pass_after_another(pool):
    store = Store()
    assert values(pool, store, list(range(12))) == list(range(12))
    first = decoder_pids()
    assert len(first) == 2
    for order, batch_size in (([3, 1, 2], 2), ([11], 1), (list(range(12))[::-1], 5), ([7] * 9, 1)):
        assert values(pool, store, order, batch_size) == order
        assert decoder_pids() == first
    assert values(pool, store, list(range(12)), 1, workers=3) == list(range(12))
    assert decoder_pids() >= first
    pool.close()
    assert decoder_pids() == set()


def test_batches_are_whole_however_many_images_they_have(pool):
    """The first batch is larger than a slot of the shared memory has to be, and has more indices than a pipe holds."""
    pixels = (np.arange(20_000) % 251).astype(np.uint8).reshape(-1, 1, 1, 1)
    order = np.random.default_rng(0).permutation(len(pixels))
    store = ArrayStore(pixels)
    for batch_size in (4, 9000, MIN_SLOT, 7):
        few = order[: batch_size * (2 * PREFETCHED + 1)]
        assert values(pool, store, few.tolist(), batch_size) == (few % 251).tolist()


def test_whoever_takes_no_more_than_the_last_batch_keeps_the_processes(pool):
    batches = pool.stream(make_split(Store()), torch.arange(COUNT), 4, torch.device("cpu"), 2, LIMIT)
    assert len(list(itertools.islice(batches, 3))) == 3
    before = decoder_pids()
    del batches
    assert values(pool, Store(), [5]) == [5]  # another store
    assert decoder_pids().isdisjoint(before)


def test_a_pass_that_is_given_up_ends_its_processes_and_the_next_one_is_whole(pool):
    store = Store()
    batches = pool.stream(make_split(store), torch.arange(COUNT), 1, torch.device("cpu"), 2, LIMIT)
    next(batches)
    batches.close()
    assert decoder_pids() == set()
    assert values(pool, store, [9, 0, 4]) == [9, 0, 4]


def test_a_pass_within_a_pass_has_processes_of_its_own(pool):
    store = Store()
    outer = pool.stream(make_split(store), torch.arange(COUNT), 2, torch.device("cpu"), 1, LIMIT)
    first = next(outer)[1][:, 0, 0, 0].tolist()
    processes = decoder_pids()
    assert values(pool, store, [8, 3], workers=1) == [8, 3]
    assert len(decoder_pids() - processes) == 1
    assert first + torch.cat([images[:, 0, 0, 0] for _, images in outer]).tolist() == list(range(COUNT))
    assert len(decoder_pids()) == 1  # those of one pass are enough for the next


def test_processes_of_a_pass_around_one_over_other_images_are_not_taken_for_the_next(pool):
    store, other = Store(), ArrayStore(np.full((COUNT, 1, 2, 1), 77, np.uint8))
    outer = pool.stream(make_split(store), torch.arange(COUNT), 2, torch.device("cpu"), 1, LIMIT)
    next(outer)
    assert values(pool, other, [8, 3], workers=1) == [77, 77]
    pool.close()
    assert torch.cat([images[:, 0, 0, 0] for _, images in outer]).tolist() == list(range(2, COUNT))
    assert values(pool, other, [8, 3], workers=1) == [77, 77]


def test_a_later_pass_that_hangs_is_given_up_and_can_be_repeated(pool, tmp_path):
    mark = tmp_path / "hang"
    store = Store(decode=lambda: hang() if mark.exists() else None)
    assert values(pool, store, [1, 2, 3], workers=1) == [1, 2, 3]
    mark.touch()
    split = make_split(store)
    with pytest.raises(LoaderHungError, match=r"a process that decodes images made no progress for 0\.4 s"):
        next(pool.stream(split, torch.arange(COUNT), 5, torch.device("cpu"), 1, 0.4))
    assert decoder_pids() == set()
    mark.unlink()
    assert values(pool, store, [1, 2, 3], workers=1) == [1, 2, 3]


def test_an_error_in_a_later_pass_ends_it_and_the_next_one_is_whole(pool, tmp_path):
    mark = tmp_path / "broken"
    store = Store(decode=lambda: fail(InputError("x.png: broken"))() if mark.exists() else None)
    assert values(pool, store, [1, 2, 3]) == [1, 2, 3]
    mark.touch()
    with pytest.raises(InputError, match=r"x\.png: broken"):
        values(pool, store, [1, 2, 3])
    assert decoder_pids() == set()
    mark.unlink()
    assert values(pool, store, [4, 5, 6]) == [4, 5, 6]


def test_a_process_that_ended_between_two_passes_is_replaced(pool):
    store = Store()
    values(pool, store, [1, 2, 3])
    (process, *_) = (child for child in multiprocessing.active_children() if child.name == "decoder")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert values(pool, store, [4, 5, 6, 7]) == [4, 5, 6, 7]
    assert len(decoder_pids()) == 2


def test_processes_that_lack_what_was_prepared_later_are_replaced(pool):
    """They would read row groups where a copy of the images is mapped by now."""

    class Growing(Store):
        preparations = 0

    store = Growing()
    values(pool, store, [1, 2, 3])
    first = decoder_pids()
    store.preparations = 1
    assert values(pool, store, [4, 5]) == [4, 5]
    assert decoder_pids().isdisjoint(first)


def test_processes_that_another_thread_started_are_replaced(pool):
    """The kernel ends them with the thread, perhaps in the middle of a pass."""
    store, pids = Store(), []

    def draw() -> None:
        values(pool, store, [1, 2, 3])
        pids.append(decoder_pids())

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert values(pool, store, [4, 5]) == [4, 5]
    assert decoder_pids().isdisjoint(pids[0])


def test_processes_end_with_the_last_reference_to_their_pool():
    before, pool = decoder_pids(), DecoderPool()
    values(pool, Store(), [1, 2, 3])
    assert len(decoder_pids() - before) == 2
    del pool
    gc.collect()
    assert decoder_pids() == before


def test_a_copy_of_the_process_ends_nothing(pool):
    store = Store()
    values(pool, store, [1, 2, 3])

    def draw_and_close() -> None:
        assert values(pool, store, [6, 7]) == [6, 7]
        pool.close()

    copy = multiprocessing.get_context("fork").Process(target=draw_and_close)
    copy.start()
    copy.join()
    assert copy.exitcode == 0
    assert len(decoder_pids()) == 2
    assert values(pool, store, [4, 5]) == [4, 5]


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
