"""Tables in CSV beside images."""

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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with 30 images in `images`; the first pixel of image i is i."""
    (tmp_path / "images").mkdir()
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return path


def load(path: Path, **changes) -> ImageData:
    return load_data(DataSettings(name=f"csv:{path}", **changes))


def fails(path: Path, message: str, **changes) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value)


def check_labels(data: ImageData, classes: tuple[str, ...]) -> None:
    assert data.classes == classes
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.labels, split.images[:, 0, 0, 0].long() % len(classes))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_files_and_labels(root: Path, delimiter: str, whole_folder: bool):
    rows = [delimiter.join([f"images/{i}.png", ["cat", "dog"][i % 2]]) for i in range(30)]
    table = write(root / "labels.csv", delimiter.join(["file", "label"]), rows)
    data = load(root if whole_folder else table)
    check_labels(data, ("cat", "dog"))
    assert (len(data.train), len(data.val), len(data.test)) == (19, 5, 6)
    assert data.notes == ()


def test_numbers_as_labels_are_in_their_order(root: Path):
    write(root / "labels.csv", "label,filename", [f"{[2, 10, 1][i % 3]},images/{i}.png" for i in range(30)])
    data = load(root)
    assert data.classes == ("1", "2", "10")
    assert torch.equal(data.test.labels, torch.tensor([1, 2, 0])[data.test.images[:, 0, 0, 0].long() % 3])


def test_a_column_of_parts(root: Path):
    parts = ["train"] * 16 + ["Valid"] * 6 + ["testing"] * 4 + ["holdout"] * 2 + ["train"] * 2
    write(root / "t.csv", "file,label,split", [f"images/{i}.png,{'ab'[i % 2]},{part}" for i, part in enumerate(parts)])
    data = load(root)
    check_labels(data, ("a", "b"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [18, 6, 4]
    assert data.notes == ("not used: images of the part 'holdout': 2 (images/26.png, images/27.png)",)


def test_a_table_for_each_part(root: Path):
    write(root / "train.csv", "file,label", [f"images/{i}.png,{'ab'[i % 2]}" for i in range(20)])
    write(root / "test.csv", "file,label", [f"images/{i}.png,{'ab'[i % 2]}" for i in range(20, 28)])
    write(root / "sample_submission.csv", "file,label", ["images/20.png,a"])
    data = load(root)
    check_labels(data, ("a", "b"))
    assert len(data.test) == 8
    assert data.notes == (
        "not used: tables that are named as no part: 1 (sample_submission.csv)",
        "not used: images that no table lists: 2 (images/28.png, images/29.png)",
    )


@pytest.mark.parametrize("label", ["", "-1"])
def test_a_test_part_without_labels_is_replaced(root: Path, label: str):
    write(
        root / "t.csv", "file,label,split",
        [f"images/{i}.png,{label if i > 24 else 'ab'[i % 2]},{'test' if i > 24 else 'train'}" for i in range(30)],
    )  # fmt: skip
    data = load(root)
    check_labels(data, ("a", "b"))
    assert sum(map(len, (data.train, data.val, data.test))) == 25
    assert data.notes == (
        "not used: images of a test part without labels: 5 (images/25.png, images/26.png, images/27.png, ...)",
    )


def test_columns_by_name(root: Path):
    write(root / "t.csv", "where,what,label", [f"images/{i}.png,{'ab'[i % 2]},x" for i in range(30)])
    check_labels(load(root, image="where", label="what"), ("a", "b"))
    fails(
        root,
        r"unknown column \(`data.label`\) of .* 'who'; choose from: label, what, where",
        image="where",
        label="who",
    )


class TestErrors:
    """One line says the rule, the file and what to do."""

    def test_no_table(self, root: Path):
        fails(root, r"must hold one table \(.csv\), or one for each part \(.*\), but it holds none$")
        fails(root / "none.csv", "there is no such file or folder$")

    def test_columns(self, root: Path):
        table = write(root / "t.csv", "a,b", ["x,y"])
        fails(
            root, rf"^{table}: no image column; it must be one of file, .*, or named by `data.image`, but .* are a, b$"
        )

    def test_missing_images(self, root: Path):
        write(root / "t.csv", "file,label", [f"{i}.png,{'ab'[i % 2]}" for i in range(30)])
        fails(root, rf"30 of 30 images are missing, such as {root}/0.png; names must be relative to {root}$")
        write(root / "t.csv", "file,label", [f"images/{i},{'ab'[i % 2]}" for i in range(30)])
        fails(root, rf"names must be relative to {root} and have a suffix such as .png$")

    @pytest.mark.parametrize("file", ["../secret.png", "/etc/passwd", "images/../../x.png"])
    def test_a_table_reads_nothing_outside_its_folder(self, root: Path, file: str):
        write(root / "t.csv", "file,label", [f"images/{i}.png,{'ab'[i % 2]}" for i in range(20)] + [f"{file},a"])
        fails(root, rf"images must lie in {root} or below, but the table lists {file}$")

    def test_two_labels_of_one_image(self, root: Path):
        write(root / "t.csv", "file,label", [f"images/{i % 10}.png,{'ab'[i < 12]}" for i in range(30)])
        fails(root, r"10 images have several labels, such as images/0.png: a and b$")

    def test_rows(self, root: Path):
        table = write(root / "t.csv", "file,label", ["images/0.png,a", "images/1.png"])
        fails(root, rf"^{table}, row 3: must have 2 fields, but has 1$")
        write(table, "file,label", [",a"])
        fails(root, rf"^{table}, row 2: must name an image, but column 'file' is empty$")
        write(table, "file,label", ["images/0.png,", "images/1.png,a"])
        fails(root, "each row must have a label, but 1 of training have none, such as images/0.png$")
        write(table, "file,label,split", ["images/0.png,a,other"])
        fails(root, rf"^{table}: must list at least one image of a part \(.*\), but lists none$")
        table.write_bytes(b"file,label\n\xff\xfe,a")
        fails(root, rf"^{table}: must be a readable table in UTF-8, but ")


def test_absolute_paths_count_as_listed(root: Path):
    write(
        root / "labels.csv",
        "file,label",
        [f"{root}/images/{i}.png,{'cat' if i % 2 == 0 else 'dog'}" for i in range(29)],
    )
    assert load(root).notes == ("not used: images that no table lists: 1 (images/29.png)",)


def test_paths_of_windows(root: Path):
    write(root / "labels.csv", "file,label", [f"images\\{i}.png,{['cat', 'dog'][i % 2]}" for i in range(30)])
    data = load(root)
    check_labels(data, ("cat", "dog"))
    assert data.notes == ()


def test_images_and_tables_that_start_with_a_dot_are_said_unless_a_table_lists_them(root: Path):
    images = root / "images"
    (images / "0.png").rename(images / ".0.png")
    (images / "1.png").rename(images / ".1.png")
    names = [".0", *range(2, 30)]
    write(
        root / "labels.csv",
        "file,label",
        [f"images/{name}.png,{['cat', 'dog'][i % 2]}" for i, name in enumerate(names)],
    )
    for name in (".labels.csv", "._labels.csv"):
        (root / name).touch()
    data = load(root)
    assert sum(map(len, (data.train, data.val, data.test))) == 29
    assert data.notes == (
        "not used: files whose name, or that of a folder above them, starts with a dot: 2 (.labels.csv, images/.1.png)",
    )


def test_files_of_macos_are_no_images(root: Path):
    (root / "__MACOSX" / "images").mkdir(parents=True)
    for path in (root / "__MACOSX" / "images" / "0.png", root / "images" / "._0.png"):
        path.write_bytes(b"resource")
    write(root / "labels.csv", "file,label", [f"images/{i}.png,{['cat', 'dog'][i % 2]}" for i in range(30)])
    assert load(root).notes == ()
