"""Tables in CSV beside images."""

from __future__ import annotations

import shutil
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
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
            root, rf"^{table}: no image column; it must be one of file, .*, or named by `data.image`, but .* has a, b$"
        )

    def test_missing_images(self, root: Path):
        write(root / "t.csv", "file,label", [f"{i}.png,{'ab'[i % 2]}" for i in range(31)])
        fails(root, rf"31 of 31 images are missing, such as {root}/0.png; names must be relative to {root}$")
        write(root / "t.csv", "file,label", [f"images/{i},{'ab'[i % 2]}" for i in range(31)])
        fails(root, rf"names must be relative to {root} and have a suffix such as .png$")

    def test_a_table_that_contradicts_its_name(self, root: Path):
        """A row of the test part must not be trained on because its table is named `train`."""
        rows = [f"images/{i}.png,{'ab'[i % 2]},{'test' if i > 20 else 'train'}" for i in range(30)]
        table = write(root / "train.csv", "file,label,split", rows)
        fails(
            root,
            rf"^{table}, row 23: column 'split' says test, but the table is named as the training part; give the table "
            "another name to use its column$",
        )
        table.rename(root / "all.csv")
        assert len(load(root).test) == 9

    def test_several_tables(self, root: Path):
        for name in ("labels", "sample_submission"):
            write(root / f"{name}.csv", "file,label", ["images/0.png,a"])
        fails(
            root,
            rf"holds labels.csv, sample_submission.csv; name the one that is meant, such as csv:{root}/labels.csv$",
        )

    def test_a_table_in_a_folder_below(self, root: Path):
        table = write(root / "images" / "metadata.csv", "file_name,label", ["0.png,a"])
        fails(root, rf"but it holds images/metadata.csv; name the one that is meant, such as csv:{table}$")

    def test_a_column_that_is_there_twice(self, root: Path):
        table = write(root / "t.csv", "file,label,label", ["images/0.png,a,b"])
        fails(root, rf"^{table}: each column must have a name of its own, but several are named 'label'$")

    def test_names_in_another_case(self, root: Path):
        write(root / "t.csv", "file,label", [f"images/{i}.PNG,{'ab'[i % 2]}" for i in range(30)])
        fails(
            root, "30 of 30 images are missing: the table lists images/0.PNG, but the file is images/0.png; upper and"
        )

    def test_a_column_that_names_no_part(self, root: Path):
        write(root / "t.csv", "file,label,split", [f"images/{i}.png,a,{i % 3}" for i in range(30)])
        fails(root, "must list at least one image of a part .*, but lists none; its column 'split' has 0, 1, 2$")

    def test_no_header(self, root: Path):
        write(root / "t.csv", "images/0.png,a", ["images/1.png,b"])
        fails(root, r"but the first row, which must name the columns, has images/0.png, a$")

    @pytest.mark.parametrize("file", ["../secret.png", "/etc/passwd", "images/../../x.png"])
    def test_a_table_reads_nothing_outside_its_folder(self, root: Path, file: str):
        write(root / "t.csv", "file,label", [f"images/{i}.png,{'ab'[i % 2]}" for i in range(20)] + [f"{file},a"])
        fails(root, rf"images must lie in {root} or below, but the table lists {file}$")

    def test_two_labels_of_one_image(self, root: Path):
        write(root / "t.csv", "file,label", [f"images/{i % 10}.png,{'ab'[i < 12]}" for i in range(30)])
        fails(root, r"10 images must have one label each, but have several, such as images/0.png: a and b$")

    def test_rows(self, root: Path):
        table = write(root / "t.csv", "file,label", ["images/0.png,a", "images/1.png"])
        fails(root, rf"^{table}, row 3: must have 2 fields, but has 1$")
        write(table, "file,label", [",a"])
        fails(root, rf"^{table}, row 2: must name an image, but column 'file' is empty$")
        write(table, "file,label", ["images/0.png,", "images/1.png,a"])
        fails(root, "each row must have a label, but 1 of training have none, such as images/0.png$")
        write(table, "file,label,split", ["images/0.png,a,other"])
        fails(
            root,
            rf"^{table}: must list at least one image of a part \(.*\), but lists none; its column .split. has other$",
        )
        table.write_bytes(b"file,label\n\xff\xfe,a")
        fails(root, rf"^{table}: must be a readable table in UTF-8, but ")


class TestIncompleteNames:
    """A table may lie beside the folder of its images, and leave that folder or the suffix out."""

    @pytest.mark.parametrize("name", ["{}.png", "images/{}", "{}"])
    def test_what_all_names_lack_is_added(self, root: Path, name: str):
        write(root / "labels.csv", "id,label", [f"{name.format(i)},{['cat', 'dog'][i % 2]}" for i in range(30)])
        data = load(root)
        check_labels(data, ("cat", "dog"))
        first = name.format(0)
        assert data.notes == (f"names in labels.csv are completed: {first} is images/0.png, and likewise all others",)

    def test_each_table_has_the_folder_that_is_named_as_its_part(self, root: Path):
        (root / "images").rename(root / "train")
        (root / "test").mkdir()
        for number in range(6):
            pixels = np.full((4, 4), 100 + number, np.uint8)
            Image.fromarray(pixels).save(root / "test" / f"{number}.png")
        for part, count in (("train", 30), ("test", 6)):
            write(root / f"{part}.csv", "id,label", [f"{i},{['cat', 'dog'][i % 2]}" for i in range(count)])
        data = load(root)
        assert data.test.images[:, 0, 0, 0].tolist() == list(range(100, 106))
        check_labels(data, ("cat", "dog"))

    def test_where_two_folders_fit_none_is_chosen(self, root: Path):
        shutil.copytree(root / "images", root / "other")
        write(root / "labels.csv", "file,label", [f"{i}.png,{'ab'[i % 2]}" for i in range(30)])
        fails(root, rf"30 of 30 images are missing, such as {root}/0.png")

    def test_a_folder_that_lacks_one_image_is_not_chosen(self, root: Path):
        (root / "images" / "17.png").unlink()
        write(root / "labels.csv", "file,label", [f"{i}.png,{'ab'[i % 2]}" for i in range(30)])
        fails(root, rf"30 of 30 images are missing, such as {root}/0.png")


class TestMissingLabels:
    """A test or validation part without labels is not used, and said; images of training stand in for it."""

    @pytest.mark.parametrize("part", ["test", "validation"])
    @pytest.mark.parametrize(("header", "end"), [("file", ""), ("file,label", ",-1"), ("file,label", ",")])
    def test_a_table_of_a_part(self, root: Path, part: str, header: str, end: str):
        write(root / "train.csv", "file,label", [f"images/{i}.png,{['cat', 'dog'][i % 2]}" for i in range(20)])
        write(root / f"{part}.csv", header, [f"images/{i}.png{end}" for i in range(20, 30)])
        data = load(root)
        check_labels(data, ("cat", "dog"))
        assert sum(map(len, (data.train, data.val, data.test))) == 20
        assert data.notes == (
            f"not used: images of a {part} part without labels: 10 (images/20.png, images/21.png, images/22.png, ...)",
        )

    def test_images_of_such_a_part_need_not_be_there(self, root: Path):
        write(root / "train.csv", "file,label", [f"images/{i}.png,{['cat', 'dog'][i % 2]}" for i in range(30)])
        write(root / "test.csv", "file", ["far/0.png"])
        assert load(root).notes == ("not used: images of a test part without labels: 1 (far/0.png)",)

    def test_training_needs_them(self, root: Path):
        table = write(root / "train.csv", "file", ["images/0.png"])
        fails(root, rf"^{table}: no label column; ")

    def test_rows_without_a_part(self, root: Path):
        rows = [f"images/{i}.png,{'ab'[i % 2]},{'' if i < 3 else 'train'}" for i in range(30)]
        write(root / "all.csv", "file,label,split", rows)
        assert load(root).notes == ("not used: images without a part: 3 (images/0.png, images/1.png, images/2.png)",)


def test_a_table_in_the_folder_of_each_part(root: Path):
    """As the hub's own image folders have it: names are relative to the table."""
    for part, numbers in (("train", range(24)), ("test", range(24, 30))):
        (root / part).mkdir()
        for number in numbers:
            (root / "images" / f"{number}.png").rename(root / part / f"{number}.png")
        rows = [f"{number}.png,{['cat', 'dog'][number % 2]}" for number in numbers]
        write(root / part / "metadata.csv", "file_name,label", rows)
    (root / "docs").mkdir()
    (root / "docs" / "authors.csv").touch()
    data = load(root)
    check_labels(data, ("cat", "dog"))
    assert (len(data.train) + len(data.val), len(data.test)) == (24, 6)
    assert data.notes == ("not used: tables in other folders: 1 (docs/authors.csv)",)


def test_rows_that_are_there_twice_are_used_once(root: Path):
    rows = [f"images/{i}.png,{['cat', 'dog'][i % 2]}" for i in range(30)]
    write(root / "labels.csv", "file,label", [*rows, "./images/4.png,cat", rows[7], rows[7]])
    data = load(root)
    check_labels(data, ("cat", "dog"))
    assert sum(map(len, (data.train, data.val, data.test))) == 30
    assert data.notes == ("not used: rows that list an image again: 3 (images/4.png, images/7.png, images/7.png)",)


def test_another_column_that_may_hold_labels_is_said(root: Path):
    write(
        root / "labels.csv", "file,Category,label", [f"images/{i}.png,{'xyz'[i % 3]},{'ab'[i % 2]}" for i in range(30)]
    )
    data = load(root)
    check_labels(data, ("a", "b"))
    assert data.notes == ("not used: columns that may hold labels too: 1 (Category)",)
    assert load(root, label="Category").notes == ()


def test_classes_that_differ_in_case_alone_are_said(root: Path):
    write(root / "labels.csv", "file,label", [f"images/{i}.png,{['Cat', 'cat', 'dog'][i % 3]}" for i in range(30)])
    data = load(root)
    check_labels(data, ("Cat", "cat", "dog"))
    assert data.notes == ("classes of their own, though their names differ in case or spaces at most: 'Cat', 'cat'",)


def test_a_folder_of_images_may_be_a_link(root: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "images").rename(elsewhere / "images")
    (root / "images").symlink_to(elsewhere / "images")
    write(root / "labels.csv", "file,label", [f"images/{i}.png,{['cat', 'dog'][i % 2]}" for i in range(30)])
    check_labels(load(root), ("cat", "dog"))


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
