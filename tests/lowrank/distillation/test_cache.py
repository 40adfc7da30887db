"""The teacher cache gives the live teacher's outputs, whatever kills, damage, full disks and other builders do."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import AugmentationSettings, ImageData
from lowrank.distillation import cache as teacher_cache, cache_file, cached_teacher
from lowrank.distillation.cache import CacheKey, CacheSource, TeacherCache, fill_cache
from lowrank.distillation.cache_file import Array, DamagedCacheError, Layout, read_cache_file, write_cache_file
from lowrank.distillation.cached_teacher import CachedTeacher
from lowrank.distillation.losses import attention_map
from lowrank.distillation.teacher import LiveTeacher, Signals, common_sizes, tap_sizes
from lowrank.errors import InputError
from lowrank.layers import Bottleneck
from lowrank.networks.registry import NetworkSettings
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from lowrank.utils import IdleWatch
from tests.support.teachers import small_data, small_network
from tests.support.waiting import scaled

TAPS = ("stage1", "stage2", "stage3")
SIZES = ((8, 8), (4, 4), (2, 2))
VIEWS = AugmentationSettings(shift=1, cutout=2, seed=3)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


def live() -> LiveTeacher:
    return LiveTeacher(small_network(), TAPS)


def key(images: ImageData, **changes: Any) -> CacheKey:
    fields = {
        "weights": "w", "data": images.fingerprint, "views": VIEWS, "taps": TAPS, "precision": "float32",
        "layout": Layout(len(images.train), 10, SIZES), **changes,
    }  # fmt: skip
    return CacheKey(**fields)


@pytest.fixture
def cache(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> TeacherCache:
    monkeypatch.setattr(teacher_cache, "RESERVE", 0)
    return TeacherCache(tmp_path / "caches", key(data))


def source(data: ImageData, teacher: Any = live) -> CacheSource:
    return CacheSource(teacher=teacher, data=data, device="cpu", batch_size=64)


def never() -> Any:
    raise AssertionError("the live teacher ran")


def losses(data: ImageData, teacher: Any, epochs: int = 2, cache_epochs: int | None = None) -> list[float]:
    """The loss of every epoch of a small student, at the same weights: its learning rate is next to nothing."""
    settings = NetworkSettings(name="wrn_10_1", width=0.5)
    student = build_student(
        settings, network_plan(settings, (1, 8, 8), 10), Bottleneck(rank_scale=0.3), (1, 8, 8), 10, 1
    )
    recipe = Recipe(epochs=epochs, batch_size=32, lr=1e-9, attention_weight=1000, kd_weight=0.5)
    trainer = Trainer(
        student, data, recipe, augmentation=VIEWS, order_seed=0, teacher=teacher, taps=TAPS, cache_epochs=cache_epochs
    )
    return [trainer.train_epoch()["train_loss"] for _ in range(epochs)]


def test_cached_and_live_teacher_give_the_same_losses(cache: TeacherCache, data: ImageData) -> None:
    assert fill_cache(cache, source(data), 2, notify=lambda line: None)
    cached = losses(data, CachedTeacher(cache, data, never))
    assert cached == pytest.approx(losses(data, live()), rel=1e-3)


def test_cache_epochs_repeat_when_there_are_fewer_than_epochs(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 2, notify=lambda line: None)
    cached = losses(data, CachedTeacher(cache, data, never), epochs=3, cache_epochs=2)
    assert cached == pytest.approx(losses(data, live(), epochs=3, cache_epochs=2), rel=1e-3)


def test_a_cache_file_has_the_size_that_was_announced(cache: TeacherCache, data: ImageData) -> None:
    lines: list[str] = []
    fill_cache(cache, source(data), 1, notify=lines.append)
    assert "teacher cache: 1 epoch of 200 images, 0.0 MB" in lines[0]
    assert 0 <= cache.path(0).stat().st_size - cache.layout.bytes < 3000


def test_a_finished_cache_is_built_once(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 2, notify=lambda line: None)
    assert fill_cache(cache, source(data, never), 2, notify=pytest.fail)
    assert fill_cache(cache, source(data, never), 1, notify=pytest.fail)  # fewer cache epochs of the same images


def _die_after_two(root: Path, images: int) -> None:
    data = small_data(images)
    cache = TeacherCache(root, key(data))

    def die(cache_epoch: int) -> None:
        if cache_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    fill_cache(cache, source(data), 4, on_epoch_cached=die)


def test_a_killed_build_continues_where_it_was(cache: TeacherCache, data: ImageData, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_die_after_two, args=(tmp_path / "caches", 200))
    process.start()
    process.join(scaled())
    assert process.exitcode == -signal.SIGKILL
    (cache.folder / "slot_00002.arrow.1.tmp").write_bytes(b"half of a file")
    first = cache.path(0).stat().st_mtime_ns
    built: list[int] = []
    assert fill_cache(cache, source(data), 4, notify=lambda line: None, on_epoch_cached=built.append)
    assert built == [2, 3]
    assert cache.path(0).stat().st_mtime_ns == first
    assert not list(cache.folder.glob("*.tmp"))


def _fill(root: Path, turn: Any) -> None:
    data = small_data()
    turn.wait(scaled())
    lines: list[str] = []
    fill_cache(TeacherCache(root, key(data)), source(data), 3, notify=lines.append)
    (root / f"{os.getpid()}.txt").write_text("\n".join(lines))


def test_of_two_processes_one_builds_and_the_other_waits(cache: TeacherCache, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    turn, root = context.Barrier(2), tmp_path / "caches"
    root.mkdir()
    both = [context.Process(target=_fill, args=(root, turn)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(scaled())
    assert [process.exitcode for process in both] == [0, 0]
    lines = "\n".join(path.read_text() for path in root.glob("*.txt"))
    assert lines.count("epochs built in") == 1
    assert cache.missing(3) == []


def test_a_build_waits_for_another_builder(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 1, notify=lambda line: None)
    holder = subprocess.Popen(["flock", str(cache.folder / "build.lock"), "cat"], stdin=subprocess.PIPE)
    assert holder.stdin is not None
    lines: list[str] = []

    def notify(line: str) -> None:
        lines.append(line)
        holder.stdin.close()  # the other builder ends, and frees the lock

    while subprocess.run(["flock", "-n", str(cache.folder / "build.lock"), "true"], check=False).returncode == 0:
        assert holder.poll() is None
    assert fill_cache(cache, source(data), 2, notify=notify)
    assert lines[0] == "another process builds the teacher cache; waiting for it"
    assert holder.wait(scaled()) == 0


def test_a_builder_without_progress_is_given_up_and_one_with_progress_is_not(
    cache: TeacherCache, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a builder that was stopped (SIGSTOP) is never freed."""
    monkeypatch.setattr(teacher_cache, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(teacher_cache, "MAX_IDLE_SECONDS", 0.1)
    cache.folder.mkdir(parents=True)
    lines: list[str] = []
    with (cache.folder / "build.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not fill_cache(cache, source(data, never), 1, notify=lines.append)
    assert lines[0] == "another process builds the teacher cache; waiting for it"
    assert "the process that builds it has made no progress for 0 s and still holds" in lines[1]
    clock = [0.0]
    monkeypatch.setattr(teacher_cache.time, "monotonic", lambda: clock[0])
    watch = IdleWatch(0.1, lambda: teacher_cache._time_of_change(cache.folder / "build.progress"))
    signs: list[float] = []
    progress = teacher_cache._ProgressFile(cache.folder, lambda: signs.append(clock[0]))
    for _ in range(3):
        clock[0] += 2.0
        progress.touch()
        progress.touch()
        assert not watch.is_idle()
        clock[0] += 0.05
        assert not watch.is_idle()
    clock[0] += 0.1
    assert watch.is_idle()
    assert len(signs) == 3


def test_a_disk_without_room_is_asked_before_files_are_copied_and_a_copy_that_fails_leaves_none(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "RESERVE", 0)
    other = TeacherCache(tmp_path / "other", key(data))
    assert fill_cache(other, source(data), 2, notify=lambda line: None)
    cache = TeacherCache(tmp_path / "caches", key(data), sources=[tmp_path / "other"])
    lines: list[str] = []
    with monkeypatch.context() as full:
        full.setattr(teacher_cache, "RESERVE", 2**62)
        assert not fill_cache(cache, source(data, never), 2, notify=lines.append)
    assert list(cache.folder.glob("*.arrow")) == []
    assert "stay free, and the disk of" in lines[0]
    write = teacher_cache.write_cache_file

    def write_one(path: Path, arrays: list[Array]) -> None:
        if path == cache.path(1):
            raise OSError("No space left on device")
        write(path, arrays)

    with monkeypatch.context() as full:
        full.setattr(teacher_cache, "write_cache_file", write_one)
        assert not fill_cache(cache, source(data, never), 2, notify=lines.append)
    assert list(cache.folder.glob("*.arrow")) == []
    assert lines[-1] == "no teacher cache, the live teacher runs instead: No space left on device"
    assert fill_cache(cache, source(data, never), 2, notify=lines.append)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "another teacher"}, {"data": "f00d"}, {"views": VIEWS.model_copy(update={"seed": 4})},
        {"views": VIEWS.model_copy(update={"shift": 2})}, {"views": VIEWS.model_copy(update={"cutout": 0})},
        {"taps": ("stage1", "stage3", "stage2")}, {"precision": "bfloat16"},
        {"layout": Layout(200, 10, ((4, 4), (4, 4), (2, 2)))},
    ],
)  # fmt: skip
def test_whatever_changes_the_outputs_changes_the_key(data: ImageData, change: dict[str, Any]) -> None:
    assert key(data, **change).digest != key(data).digest


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bits":
        content[len(content) // 2] ^= 0xFF
    elif how == "cut short":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["bits", "cut short", "empty"])
def test_a_damaged_file_is_built_again(cache: TeacherCache, data: ImageData, how: str) -> None:
    fill_cache(cache, source(data), 3, notify=lambda line: None)
    damage(cache.path(1), how)
    lines: list[str] = []
    built: list[int] = []
    assert fill_cache(cache, source(data), 3, notify=lines.append, on_epoch_cached=built.append)
    assert built == [1]
    assert lines[0] == "epochs 1 of the teacher cache are damaged and are built again"


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    layout = Layout(5, 3, ((2, 2),))
    write_cache_file(tmp_path / "slot", layout.empty())
    with pytest.raises(DamagedCacheError, match=r"2 columns, not 1"):
        read_cache_file(tmp_path / "slot", Layout(5, 3, ()))
    with pytest.raises(DamagedCacheError, match=r"a column holds 15 numbers of float32, not \(6, 3\)"):
        read_cache_file(tmp_path / "slot", Layout(6, 3, ((2, 2),)))


def test_damage_during_training_falls_back_to_the_live_teacher(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 2, notify=lambda line: None)
    damage(cache.path(1), "bits")
    lines: list[str] = []
    fallback = losses(data, CachedTeacher(cache, data, live, notify=lines.append))
    assert len(lines) == 1
    assert lines[0].startswith("the live teacher runs in cache epoch 1: ")
    assert fallback == pytest.approx(losses(data, live()), rel=1e-3)


def test_preloaded_cache_epochs_are_prefetched_and_give_the_same_losses(
    cache: TeacherCache, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(cache, source(data), 3, notify=lambda line: None)
    row_by_row = losses(data, CachedTeacher(cache, data, never), epochs=5, cache_epochs=3)
    monkeypatch.setattr(cached_teacher, "MAX_PRELOADED_BYTES", 0)  # every epoch's cache epoch is opened anew
    readers: list[tuple[int, str]] = []
    read = TeacherCache.read

    def seen(self: TeacherCache, cache_epoch: int) -> list[Array]:
        readers.append((cache_epoch, threading.current_thread().name.partition("_")[0]))
        return read(self, cache_epoch)

    monkeypatch.setattr(TeacherCache, "read", seen)
    assert losses(data, CachedTeacher(cache, data, never, preload=True), epochs=5, cache_epochs=3) == row_by_row
    cache_epochs = [cache_epoch for cache_epoch, _ in readers]
    assert cache_epochs[:5] == [0, 1, 2, 0, 1]
    assert [who for _, who in readers] == ["MainThread", *["teacher-cache"] * (len(readers) - 1)]


def test_a_damaged_file_that_was_prefetched_is_reported_when_it_is_opened(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 2, notify=lambda line: None)
    damage(cache.path(1), "bits")
    lines: list[str] = []
    reader = CachedTeacher(cache, data, live, notify=lines.append, preload=True)
    indices = data.train.indices[:4]
    images = torch.zeros(4, 1, 8, 8)
    reader.signals(images, indices, 0)
    assert lines == []
    reader.signals(images, indices, 1)
    assert len(lines) == 1
    assert lines[0].startswith("the live teacher runs in cache epoch 1: ")


def test_damage_during_training_is_repaired_and_changes_no_bit(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 2, notify=lambda line: None)
    undisturbed = losses(data, CachedTeacher(cache, data, never))
    damage(cache.path(1), "cut short")
    lines: list[str] = []
    repair = partial(fill_cache, cache, source(data), 2, notify=lines.append)
    assert losses(data, CachedTeacher(cache, data, never, repair=repair)) == undisturbed
    assert lines[0] == "epochs 1 of the teacher cache are damaged and are built again"


def test_too_small_a_disk_is_reported_before_anything_is_built(
    cache: TeacherCache, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "RESERVE", 10**18)
    lines: list[str] = []
    assert not fill_cache(cache, source(data, never), 2, notify=lines.append)
    assert re.search(r"the live teacher runs instead: [\d.]+ [MG]B for 2 epochs, ", lines[0])
    assert not list(cache.folder.glob("*.arrow"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_build_is_freed_again(
    small_disk: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "RESERVE", 0)
    cache = TeacherCache(small_disk, key(data))
    lines: list[str] = []

    def fill(cache_epoch: int) -> None:  # another program takes the remaining space
        subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'other'}"], capture_output=True, check=False)

    assert not fill_cache(cache, source(data), 3, notify=lines.append, on_epoch_cached=fill)
    assert lines[-1].startswith("no teacher cache, the live teacher runs instead: ")
    assert "No space left" in lines[-1]
    assert not list(cache.folder.glob("slot*"))  # checkpoints and records need the disk


def test_finished_files_of_another_host_are_copied(cache: TeacherCache, data: ImageData, tmp_path: Path) -> None:
    fill_cache(cache, source(data), 3, notify=lambda line: None)
    away = tmp_path / "storage" / "other_host" / cache.key.digest
    away.parent.mkdir(parents=True)
    shutil.move(cache.folder, away)
    damage(away / cache.path(2).name, "bits")
    copying = TeacherCache(tmp_path / "caches", cache.key, sources=[tmp_path / "storage"])
    built: list[int] = []
    assert fill_cache(copying, source(data), 3, notify=lambda line: None, on_epoch_cached=built.append)
    assert built == [2]


def test_signals_come_in_the_order_of_the_batch(cache: TeacherCache, data: ImageData) -> None:
    fill_cache(cache, source(data), 1, notify=lambda line: None)
    reader = CachedTeacher(cache, data, never)
    indices = data.train.indices[[7, 3, 150]]
    signals: Signals = reader.signals(torch.empty(0), indices, 0)
    logits, *maps = cache.read(0)
    assert np.array_equal(signals.logits.numpy(), logits[[7, 3, 150]])
    assert [tuple(tensor.shape) for tensor in signals.maps] == [(3, *size) for size in SIZES]
    assert np.array_equal(signals.maps[1].flatten(1).numpy(), maps[1][[7, 3, 150]])


def test_the_live_teacher_runs_when_the_folder_cannot_be_made(tmp_path: Path, data: ImageData) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    assert not fill_cache(TeacherCache(tmp_path / "file", key(data)), source(data, never), 1, notify=lines.append)
    assert "Not a directory" in lines[0]


def test_contents_are_verified_once_in_a_process(
    cache: TeacherCache, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(cache, source(data), 1, notify=lambda line: None)
    cache.read(0)
    monkeypatch.setattr(cache_file, "_checksum", lambda arrays: pytest.fail("verified again"))
    cache.read(0)


def test_maps_are_stored_at_the_smaller_size() -> None:
    network = small_network().train()
    assert tap_sizes(network, TAPS, (1, 8, 8)) == SIZES
    assert all(module.training for module in network.modules())
    assert common_sizes(((16, 16), (8, 8)), ((8, 8), (16, 4))) == ((8, 8), (8, 4))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1)])
def test_the_attention_map_has_the_plain_formula_s_value_and_gradient(shape: tuple[int, ...]) -> None:
    activation = torch.randn(shape, requires_grad=True)
    plain = activation.square().mean(dim=1)
    gradient = torch.randn_like(plain)
    torch.testing.assert_close(attention_map(activation), plain)
    actual = torch.autograd.grad(attention_map(activation), activation, gradient)
    torch.testing.assert_close(actual, torch.autograd.grad(plain, activation, gradient))


@pytest.mark.parametrize(("tap", "shape"), [("1", r"\(1, 12\)"), ("2", "a tuple")])
def test_a_tap_that_gives_no_maps_is_named(tap: str, shape: str) -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.LSTM(12, 5))
    with pytest.raises(InputError, match=rf"tap `{tap}` must give maps \(B, C, H, W\) or tokens .*, but gives {shape}"):
        tap_sizes(network, [tap], (3, 2, 2))
