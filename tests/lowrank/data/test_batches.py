"""Batches: complete, replayable, and the same bits from a resident and from a streamed set."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lowrank.data.batches as batches_module
from lowrank.data import (
    AugmentationSettings,
    DataSettings,
    DecoderPool,
    ImageData,
    augment_images,
    draw_training_images,
    epoch_order,
    eval_batches,
    load_data,
    steps_per_epoch,
    train_batches,
)
from lowrank.errors import InputError, LoaderHungError

AUGMENTATION = AugmentationSettings(shift=2, flip=True, cutout=3, seed=4)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataSettings(train_images=300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 30 coloured JPEGs of 12x10."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir()
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(root / label / f"{i:02}.jpg")
    return root


def epoch_of(data: ImageData, batch_size: int = 64, epoch: int = 0, **options) -> list:
    options = {"augmentation": AUGMENTATION, "order_seed": 1, **options}
    return list(train_batches(data, "cpu", batch_size, epoch=epoch, **options))


def assert_same(batches: list, others: list) -> None:
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            assert x.stride() == y.stride()
            assert torch.equal(x, y)


def test_an_epoch(digits: ImageData):
    batches = epoch_of(digits)
    assert [len(labels) for _, labels, _ in batches] == [64] * 4
    assert len(batches) == steps_per_epoch(digits, 64) == 4
    indices = torch.cat([batch[2] for batch in batches])
    assert len(indices.unique()) == 256
    assert torch.equal(indices, digits.train.indices[epoch_order(1, 0, 300)][:256])
    row_of = {int(index): i for i, index in enumerate(digits.train.indices)}
    rows = torch.tensor([row_of[int(index)] for index in indices])
    assert torch.equal(torch.cat([batch[1] for batch in batches]), digits.train.labels[rows])
    images = torch.cat([batch[0] for batch in batches])
    expected = augment_images(digits.train.images[rows], indices, 0, AUGMENTATION, digits.mean, digits.std)
    assert torch.equal(images, expected)
    assert all(batch[0].is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_the_last_batch(digits: ImageData):
    assert [len(batch[1]) for batch in epoch_of(digits, drop_last=False)] == [64] * 4 + [44]
    assert steps_per_epoch(digits, 64, drop_last=False) == 5
    assert [len(batch[1]) for batch in epoch_of(digits, 100, drop_last=False)] == [100] * 3
    assert steps_per_epoch(digits, 100, drop_last=False) == steps_per_epoch(digits, 100) == 3
    for drop_last in (True, False):
        assert [len(batch[1]) for batch in epoch_of(digits, 301, drop_last=drop_last)] == [300]
        assert steps_per_epoch(digits, 301, drop_last) == 1


def test_augmentation_does_not_depend_on_the_batch_size(digits: ImageData):
    small, large = (torch.cat([batch[0] for batch in epoch_of(digits, size)]) for size in (10, 300))
    assert torch.equal(small, large)


@pytest.mark.parametrize("at_once", [1, 64, 700, 10_000])
def test_augmenting_in_pieces_gives_the_same_bits(digits: ImageData, monkeypatch: pytest.MonkeyPatch, at_once: int):
    expected = epoch_of(digits, drop_last=False)
    monkeypatch.setattr(batches_module, "_CPU_VALUES", at_once)
    assert_same(epoch_of(digits, drop_last=False), expected)
    plain = epoch_of(digits, augmentation=AugmentationSettings())
    monkeypatch.undo()
    assert_same(epoch_of(digits, augmentation=AugmentationSettings()), plain)


def test_replay_and_randomness(digits: ImageData):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert_same(epoch_of(digits, epoch=3), epoch_of(digits, epoch=3))
    assert torch.equal(torch.get_rng_state(), before)
    base, later, other = epoch_of(digits), epoch_of(digits, epoch=1), epoch_of(digits, order_seed=2)
    assert not torch.equal(base[0][2], later[0][2])
    assert not torch.equal(base[0][2], other[0][2])
    by_index = {int(i): image for batch in base for i, image in zip(batch[2], batch[0], strict=True)}
    shared = [(by_index[int(i)], x) for b in other for i, x in zip(b[2], b[0], strict=True) if int(i) in by_index]
    assert len(shared) > 200
    assert all(torch.equal(a, b) for a, b in shared)  # the order's seed does not change a view


def test_augmentation_varies_over_epochs(digits: ImageData):
    first, second = {}, {}
    for epoch, seen in enumerate((first, second)):
        for images, _, indices in epoch_of(digits, 300, epoch):
            seen.update(zip(indices.tolist(), images, strict=True))
    assert first.keys() == second.keys()
    assert sum(torch.equal(first[index], second[index]) for index in first) < 10


def test_eval_batches(digits: ImageData):
    for name, split in (("val", digits.val), ("test", digits.test), ("train", digits.train)):
        batches = list(eval_batches(digits, name, "cpu", 64))
        assert torch.equal(torch.cat([batch[1] for batch in batches]), split.labels)
        assert torch.equal(torch.cat([batch[2] for batch in batches]), split.indices)
        images = torch.cat([batch[0] for batch in batches])
        pixels = (images * digits.std[0] + digits.mean[0]) * 255
        assert torch.equal(pixels.round().to(torch.uint8)[:, 0], split.images[..., 0])
    assert [len(batch[1]) for batch in eval_batches(digits, "test", "cpu", 100)] == [100, 100, 100, 59]
    half = next(eval_batches(digits, "val", "cpu", 8, torch.bfloat16))[0]
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_resident(folder: Path, workers: int):
    name = f"folder:{folder}"
    resident, streamed = (load_data(DataSettings(name=name, resident_mb=size)) for size in (100, 0.001))
    assert resident.resident
    assert not streamed.resident
    assert resident.image_shape == streamed.image_shape == (3, 10, 12)
    assert (resident.mean, resident.std) == (streamed.mean, streamed.std)
    for augmentation in (AUGMENTATION, AugmentationSettings()):
        options = {"augmentation": augmentation, "epoch": 2, "batch_size": 8, "drop_last": False}
        assert_same(epoch_of(streamed, workers=workers, **options), epoch_of(resident, **options))
    for split in ("val", "test", "train"):
        assert_same(
            list(eval_batches(streamed, split, "cpu", 5, workers=workers)),
            list(eval_batches(resident, split, "cpu", 5)),
        )


@pytest.mark.parametrize(
    ("setting", "threads", "share", "workers"),
    [
        (None, 1, None, 2),  # training and decoding take turns with one alone
        (None, 7, None, 7),
        (None, 1, 12, 12),  # a trial on a card has few threads and perhaps the whole machine
        (None, 4, 1, 2),
        (None, 200, None, 32),
        (None, 1, 100, 32),
        (0, 7, 12, 0),
        (1, 7, 12, 1),
        (50, 7, 12, 50),
    ],
)
def test_how_many_processes_decode(folder, monkeypatch, setting, threads, share, workers):
    """What the settings say, else the share of the machine; an argument comes first."""
    counts = []

    def note(split, order, batch_size, device, count, seconds):
        counts.append(count)
        return iter(())

    pool = None if share is None else DecoderPool(share)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(batches_module, "stream_images", note)
    monkeypatch.setattr(DecoderPool, "stream", lambda self, *arguments: note(*arguments))
    data = load_data(DataSettings(name=f"folder:{folder}", resident_mb=0, workers=setting))
    epoch_of(data, 8, decoders=pool)
    list(eval_batches(data, "val", "cpu", 8, decoders=pool))
    epoch_of(data, 8, decoders=pool, workers=3)
    assert counts == [workers, workers, 3]


def test_no_more_processes_decode_than_there_are_cores_or_batches(folder, monkeypatch):
    data = load_data(DataSettings(name=f"folder:{folder}", resident_mb=0, workers=50))
    for cores, batch_size, count in ((3, 4, 3), (5, len(data.train) // 2, 2)):
        monkeypatch.setattr("lowrank.data.watched_loader.usable_cores", lambda cores=cores: cores)
        before = len(multiprocessing.active_children())
        batches = train_batches(
            data, "cpu", batch_size, augmentation=AugmentationSettings(), order_seed=0, epoch=0, drop_last=True
        )
        next(batches)
        assert len(multiprocessing.active_children()) - before == count
        batches.close()


def test_streaming_leaves_the_random_state_alone(folder: Path):
    data = load_data(DataSettings(name=f"folder:{folder}", resident_mb=0))
    before = torch.get_rng_state()
    epoch_of(data, 8, workers=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_a_streamed_epoch_with_an_error_of_one_line(tmp_path: Path, workers: int):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(8):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / label / f"{i}.png")
    data = load_data(DataSettings(name=f"folder:{tmp_path}", resident_mb=0))
    broken = tmp_path / data.train.store.origin(int(data.train.indices[0]))
    broken.write_bytes(broken.read_bytes()[:45])
    with pytest.raises(InputError, match=r"\.png: must be a readable image, but ") as caught:
        epoch_of(data, 4, workers=workers, drop_last=False)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_workers_of_a_hung_loader_are_killed(folder: Path):
    data = load_data(DataSettings(name=f"folder:{folder}", resident_mb=0, loader_seconds=1))
    before = set(multiprocessing.active_children())
    batches = train_batches(data, "cpu", 4, augmentation=AugmentationSettings(), order_seed=0, epoch=0, workers=1)
    next(batches)
    loaders = set(multiprocessing.active_children()) - before
    for process in loaders:
        os.kill(process.pid or 0, signal.SIGSTOP)
    with pytest.raises(LoaderHungError, match="a process that decodes images made no progress for 1 s"):
        list(batches)
    for process in loaders:
        process.join(20)
    assert [process.exitcode for process in loaders] == [-signal.SIGKILL]


def test_errors(digits: ImageData):
    with pytest.raises(InputError, match=r"^`batch_size` must be at least 1, but got 0$"):
        train_batches(digits, "cpu", 0, augmentation=AUGMENTATION, order_seed=0, epoch=0)
    with pytest.raises(InputError, match=r"^`batch_size` must be at least 1, but got -2$"):
        steps_per_epoch(digits, -2)
    with pytest.raises(InputError, match=r"^unknown split 'validation'; choose from: test, train, val$"):
        eval_batches(digits, "validation", "cpu", 8)


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu(digits: ImageData):
    gpu = [
        tuple(t.cpu() for t in batch)
        for batch in train_batches(digits, "cuda", 64, augmentation=AUGMENTATION, order_seed=1, epoch=0)
    ]
    for a, b in zip(gpu, epoch_of(digits), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert digits.train.on("cuda").images is digits.train.on("cuda:0").images


@pytest.mark.parametrize("count", [7, 1000])
def test_drawn_training_images_are_those_of_the_split_in_the_order_of_the_seed(digits, count):
    images, labels, _ = next(iter(eval_batches(digits, "train", "cpu", 1000)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))[:count]
    drawn, drawn_labels = draw_training_images(digits, count, 3)
    assert torch.equal(drawn, images[order])
    assert torch.equal(drawn_labels, labels[order])
    assert len(drawn) == min(count, len(digits.train))
