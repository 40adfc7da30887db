"""Folders of images, in both layouts."""

from __future__ import annotations

import os
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
    assert data.notes == (
        "not used: files of other kinds in folders of classes (.txt): 1 (dog/notes.txt)",
        "not used: files outside the folders of the classes: 1 (README.md)",
    )
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
    fails(tmp_path, r"must hold one folder for each class with images in it, .*, but it holds none$")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").touch()
    fails(tmp_path, rf"^{tmp_path}/a: a class must hold at least one image, but has none \(it has 1 other .*notes.txt")


def test_a_class_without_training_images(tmp_path: Path):
    fill(tmp_path / "train" / "a", 4, 0)
    fill(tmp_path / "train" / "c", 4, 0)
    fill(tmp_path / "test" / "b", 4, 0)
    fails(tmp_path, r"class 'b' of test has no training images; the classes of training are a, c$")


def test_sizes_and_broken_files(tmp_path: Path):
    fill(tmp_path / "a", 6, 0)
    fill(tmp_path / "b", 6, 1, size=(7, 7))
    fails(
        tmp_path,
        r"images must have one size, but 12 images have 2 sizes: 5x4 \(6 images\), 7x7 \(6 images\); set "
        r"`data.image_size` \(and `data.resize`: crop, squash or pad\) to resize them$",
    )
    assert load(tmp_path, image_size=3).image_shape == (3, 3, 3)
    clear_cache()
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"\x89PNG")
    fails(
        tmp_path,
        rf"^{tmp_path}/a/000\.png: must be a readable image, but .*; so must {tmp_path}/a/001\.png, .*, 3 more; "
        "`data.skip_broken: 6` would leave them out$",
    )


def test_too_few_of_a_class(tmp_path: Path):
    fill(tmp_path / "a", 6, 0)
    fill(tmp_path / "b", 1, 0)
    fill(tmp_path / "c", 2, 1)
    fails(
        tmp_path,
        r"each class needs at least 3 images, because validation and test images are held out of training, but 'b' has "
        "1, 'c' has 2$",
    )


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


class TestLayouts:
    """Folders as people have them."""

    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [("train", "validation", "test"), ("Training", "dev", "TESTING"), ("train", "valid", "test")],
    )
    def test_usual_names_of_parts(self, tmp_path: Path, train: str, val: str, test: str):
        for seed, (part, count) in enumerate([(train, 8), (val, 3), (test, 2)]):
            for label in "ab":
                fill(tmp_path / part / label, count, 10 * seed + ord(label))
        data = load(tmp_path)
        assert [len(s) for s in (data.train, data.val, data.test)] == [16, 6, 4]
        assert data.notes == ()

    def test_a_class_may_have_the_name_of_a_part(self, tmp_path: Path):
        for seed, label in enumerate(["car", "plane", "train"]):
            fill(tmp_path / label, 6, seed)
        assert load(tmp_path).classes == ("car", "plane", "train")
        for seed, label in enumerate(["car", "test", "train"]):
            fill(tmp_path / "parts" / "train" / label, 6, seed)
        assert load(tmp_path / "parts").classes == ("car", "test", "train")

    def test_folders_that_are_no_part_are_not_used_and_said(self, tmp_path: Path):
        for seed, part in enumerate(["train", "train_unlabelled", "extra"]):
            for label in "ab":
                fill(tmp_path / part / label, 6, 10 * seed + ord(label))
        fill(tmp_path / "test", 4, 0)
        (tmp_path / "labels.txt").touch()
        data = load(tmp_path)
        assert sum(map(len, (data.train, data.val, data.test))) == 12
        assert data.notes == (
            "not used: files in the folder extra: 12 (extra/a/000.png, extra/a/001.png, extra/a/002.png, ...)",
            "not used: files in the folder test without folders of classes: 4 (test/000.png, "
            "test/001.png, test/002.png, ...)",
            "not used: files in the folder train_unlabelled: 12 (train_unlabelled/a/000.png, "
            "train_unlabelled/a/001.png, train_unlabelled/a/002.png, ...)",
            "not used: files beside the folders of the parts: 1 (labels.txt)",
        )

    def test_all_suffixes_in_any_case_and_deeper_folders(self, tmp_path: Path):
        for seed, label in enumerate("ab"):
            for number, suffix in enumerate(["png", "TIF", "gif", "PPM", "jfif", "Jpeg"]):
                fill(tmp_path / label / "x", 1, 10 * seed + number, "png")
                image = Image.open(tmp_path / label / "x" / "000.png")
                image.save(tmp_path / label / f"{number}.{suffix}", Image.registered_extensions()[f".{suffix.lower()}"])
                if number < 5:
                    (tmp_path / label / "x" / "000.png").unlink()
                    (tmp_path / label / "x").rmdir()
        data = load(tmp_path)
        assert sum(map(len, (data.train, data.val, data.test))) == 12
        assert data.notes[0] == "not used: files in folders below those of the classes: 2 (a/x/000.png, b/x/000.png)"

    def test_two_names_of_one_part(self, tmp_path: Path):
        for seed, part in enumerate(["train", "val", "dev"]):
            for label in "ab":
                fill(tmp_path / part / label, 4, seed)
        fails(tmp_path, "a validation part must have one name, but there are dev, val; keep one$")

    def test_a_set_that_lies_one_folder_deeper(self, tmp_path: Path):
        for label in "ab":
            fill(tmp_path / "archive" / label, 4, ord(label))
        fails(tmp_path, rf"the images lie one folder deeper; is folder:{tmp_path}/archive meant\?$")
        for label in "ab":
            fill(tmp_path / "other" / "archive" / "train" / label, 4, ord(label))
        fails(tmp_path / "other", rf"is folder:{tmp_path}/other/archive meant\?$")

    def test_what_lies_in_the_folder_instead(self, tmp_path: Path):
        fill(tmp_path / "images", 3, 0)
        fails(tmp_path / "images", r"but it holds 3 images directly, such as 000.png$")
        (tmp_path / "images" / "labels.csv").touch()
        fails(tmp_path / "images", rf"is the table labels.csv meant\? Then csv:{tmp_path}/images/labels.csv$")
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "train-0.parquet").touch()
        fails(tmp_path / "hub", rf"is parquet:{tmp_path}/hub meant\?$")
        for label in "ab":
            fill(tmp_path / "half" / "val" / label, 3, 0)
        fails(tmp_path / "half", r"but of the parts there is only val, and no training part$")

    def test_folders_of_parts_without_classes(self, tmp_path: Path):
        fill(tmp_path / "train", 4, 0)
        fill(tmp_path / "test", 4, 1)
        fails(tmp_path, "the folders test, train are named as parts but hold no folders of classes; where a table has")

    def test_columns_are_for_tables(self, tmp_path: Path):
        with pytest.raises(
            InputError, match=r"^`data.label` names a column of parquet:DIR and csv:DIR, but the data set is"
        ):
            load(tmp_path, label="kind")


def test_other_kinds_of_files_are_one_note_however_many_classes_have_them(tmp_path: Path):
    for seed, label in enumerate(("cat", "dog", "fox")):
        fill(tmp_path / label, 10, seed)
        (tmp_path / label / f"notes.{label}").touch()
    assert load(tmp_path).notes == (
        "not used: files of other kinds in folders of classes (.cat, .dog, .fox): 3 "
        "(cat/notes.cat, dog/notes.dog, fox/notes.fox)",
    )


def test_images_below_the_folder_of_a_class(tmp_path: Path):
    for label in ("cat", "dog"):
        fill(tmp_path / label / "2020", 3, 0)
    fails(
        tmp_path,
        rf"^{tmp_path}/cat: a class must hold at least one image, but has none directly in it; those in folders below "
        "it, such as 2020, are not read: move them up$",
    )


def test_a_test_part_of_one_unknown_class_counts_as_none(tmp_path: Path):
    """Keras wants such a folder, where the classes are not known."""
    for seed, label in enumerate(("cat", "dog")):
        fill(tmp_path / "train" / label, 10, seed)
    fill(tmp_path / "test" / "unknown", 4, 5)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert sum(map(len, (data.train, data.val, data.test))) == 20
    assert data.notes == (
        "not used: images of a test part without labels: 4 "
        "(test/unknown/000.png, test/unknown/001.png, test/unknown/002.png, ...)",
    )


def test_classes_that_a_part_lacks_are_said(tmp_path: Path):
    for part, labels in (("train", "abc"), ("val", "ab"), ("test", "a")):
        for seed, label in enumerate(labels):
            fill(tmp_path / part / label, 4, seed + 10 * len(part))
    assert load(tmp_path).notes == (
        "without images in the validation part: 1 of 3 classes ('c')",
        "without images in the test part: 2 of 3 classes ('b', 'c')",
    )


@pytest.mark.parametrize(("name", "shown"), [(b"f\xff", r"'f\\udcff'"), (b"a\nb", r"'a\\nb'")])
def test_names_of_classes_that_no_report_could_show_are_refused(tmp_path: Path, name: bytes, shown: str):
    for seed, label in enumerate(("cat", os.fsdecode(name))):
        fill(tmp_path / label, 10, seed)
    fails(tmp_path, rf"the name of a class must be one line of text in UTF-8, but got {shown}$")


@pytest.mark.parametrize("resident_mb", [0, 100])
def test_file_names_of_an_older_encoding_are_read_and_can_be_printed(tmp_path: Path, monkeypatch, resident_mb: float):
    monkeypatch.setattr("lowrank.data.reading.image_scan.MIN_CACHED_IMAGES", 0)
    for seed, label in enumerate(("cat", "dog")):
        fill(tmp_path / label, 10, seed)
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / os.fsdecode(b"gr\xfcn.png"))
    (tmp_path / "cat" / os.fsdecode(b"\xfc.txt")).touch()
    data = load(tmp_path, resident_mb=resident_mb)
    assert sum(map(len, (data.train, data.val, data.test))) == 20
    assert data.notes == ("not used: files of other kinds in folders of classes (.txt): 1 (cat/\ufffd.txt)",)
    names = [data.train.store.origin(index) for index in range(20)]
    assert f"{tmp_path}/cat/gr\ufffdn.png" in names


def test_what_starts_with_a_dot_is_not_used_and_said(tmp_path: Path):
    for seed, label in enumerate(("cat", "dog", ".fox")):
        fill(tmp_path / label, 10, seed)
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / ".hidden.png")
    (tmp_path / ".DS_Store").touch()
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.notes == (
        "not used: files whose name, or that of a folder above them, starts with a dot: 11 "
        "(.fox/000.png, .fox/001.png, .fox/002.png, ...)",
    )


def test_nothing_but_names_that_start_with_a_dot(tmp_path: Path):
    for label in (".cat", ".dog"):
        fill(tmp_path / label, 2, 0)
    fails(tmp_path, r"but it holds none beside 4 files whose name, .* starts with a dot, such as \.cat/000\.png$")


def test_folder_that_macos_adds_to_an_archive_is_no_class(tmp_path: Path):
    for seed, label in enumerate(("cat", "dog")):
        fill(tmp_path / label, 10, seed)
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "cat" / "._000.png").write_bytes(b"resource")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.notes == ()
