"""Folders of images, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank.data import DataSettings, ImageData, clear_cache, load_data
from lowrank.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache():
    clear_cache()
    yield
    clear_cache()


def fill(folder: Path, n: int, seed: int, suffix: str = "png", size: tuple[int, int] = (5, 4)) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / f"{i:03}.{suffix}")


def load(root: Path, **changes) -> ImageData:
    return load_data(DataSettings(name=f"folder:{root}", **changes))


def fails(root: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_one_folder_a_class(tmp_path: Path):
    for seed, (label, suffix) in enumerate([("dog", "png"), ("ant", "bmp"), ("cat", "webp")]):
        fill(tmp_path / label, 10, seed, suffix)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    data = load(tmp_path)
    assert data.classes == ("ant", "cat", "dog")
    assert data.image_shape == (3, 4, 5)
    assert (len(data.train), len(data.val), len(data.test)) == (19, 5, 6)
    for split in (data.train, data.val, data.test):
        assert (split.indices // 10).tolist() == split.labels.tolist()
    position = data.train.indices.tolist().index(next(i for i in data.train.indices.tolist() if i < 10))
    expected = Image.open(tmp_path / "ant" / f"{int(data.train.indices[position]):03}.bmp")
    assert np.array_equal(data.train.images[position].numpy(), np.asarray(expected))


def test_published_parts(tmp_path: Path):
    for seed, (part, n) in enumerate([("train", 8), ("val", 3), ("test", 2)]):
        for label in "ab":
            fill(tmp_path / part / label, n, seed, "JPEG")
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert [len(s) for s in (data.train, data.val, data.test)] == [16, 6, 4]
    assert data.test.indices.tolist() == [22, 23, 24, 25]
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_parts_that_are_missing_are_held_out(tmp_path: Path):
    for label in "ab":
        fill(tmp_path / "train" / label, 10, 0)
    data = load(tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [13, 3, 4]


@pytest.mark.parametrize("resident_mb", [100, 0])
def test_fingerprint(tmp_path: Path, resident_mb: float):
    for root in ("one", "two"):
        for label in "ab":
            fill(tmp_path / root / label, 6, 0)
    base = load(tmp_path / "one", resident_mb=resident_mb).fingerprint
    assert load(tmp_path / "two", resident_mb=resident_mb).fingerprint == base
    image = Image.open(tmp_path / "two" / "a" / "002.png")
    image.paste((1, 2, 3), (0, 0, 3, 3))
    image.save(tmp_path / "two" / "a" / "002.png")
    clear_cache()
    assert load(tmp_path / "two", resident_mb=resident_mb).fingerprint != base


def test_errors(tmp_path: Path):
    fails(tmp_path / "none", rf"^data set 'folder:{tmp_path}/none': there is no such folder$")
    fails(tmp_path, r"must hold one folder for each class with files \.png, .*, but it holds none$")
    (tmp_path / "a").mkdir()
    fails(tmp_path, rf"^{tmp_path}/a: a class must hold at least one image \(\.png, .*\), but has none$")


def test_a_class_without_training_images(tmp_path: Path):
    fill(tmp_path / "train" / "a", 4, 0)
    fill(tmp_path / "test" / "b", 4, 0)
    fails(tmp_path, r"class 'b' has no training images; the classes of train are a$")


def test_sizes_and_broken_files(tmp_path: Path):
    fill(tmp_path / "a", 6, 0)
    fill(tmp_path / "b", 6, 1, size=(7, 7))
    fails(
        tmp_path, rf"^{tmp_path}/b/00\d\.png: all images must have the size of the first, 5x4, but got 7x7; set `image_"
    )
    assert load(tmp_path, image_size=3).image_shape == (3, 3, 3)
    clear_cache()
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"\x89PNG")
    fails(tmp_path, rf"^{tmp_path}/a/00\d\.png: must be a readable image, but ")


def test_too_few_of_a_class(tmp_path: Path):
    fill(tmp_path / "a", 6, 0)
    fill(tmp_path / "b", 1, 0)
    fails(tmp_path, r"the test split needs at least 2 images of each class, but class 1 has 1$")


@pytest.mark.parametrize("resident_mb", [100, 0])
def test_crop_and_interpolation(tmp_path: Path, resident_mb: float):
    """As resizing the shorter side and then cropping the middle, also of images that have the size already."""
    for label, size in (("a", (16, 16)), ("b", (40, 20))):
        fill(tmp_path / label, 5, 0, size=size)
    common = {"image_size": 16, "resident_mb": resident_mb}
    plain, cropped = load(tmp_path, **common), load(tmp_path, **common, crop=0.5)
    assert load(tmp_path, **common, crop=1.0, interpolation="bilinear").fingerprint == plain.fingerprint
    kinds = (plain, cropped, load(tmp_path, **common, interpolation="bicubic"))
    assert len({data.fingerprint for data in kinds}) == 3
    for index in cropped.train.indices.tolist():
        label, number = divmod(index, 5)
        with Image.open(tmp_path / "ab"[label] / f"{number:03}.png") as image:
            wide = image.resize((32, 32) if label == 0 else (64, 32), Image.Resampling.BILINEAR)
            left = (wide.width - 16) // 2
            expected = np.asarray(wide.crop((left, 8, left + 16, 24)))
        position = cropped.train.indices.tolist().index(index)
        assert np.array_equal(cropped.train.decode(torch.tensor([position]))[0].numpy(), expected)
