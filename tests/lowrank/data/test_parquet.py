"""Parquet sets in the Hugging Face layout, whole and damaged."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lowrank.data import (
    AugmentationSettings,
    DataSettings,
    DecoderPool,
    ImageData,
    clear_cache,
    eval_batches,
    load_data,
    train_batches,
)
from lowrank.data.reading import parquet_store
from lowrank.data.reading.disk_cache import CACHE_VARIABLE
from lowrank.errors import InputError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CIFAR10 = Path(__file__).resolve().parents[2] / "data" / "cifar10-jpeg"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    clear_cache()
    yield
    clear_cache()


def pixels(n: int, seed: int = 0, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size[1], size[0], 3), np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, blobs: list, labels: list, *, image: str = "img", label: str = "label", meta=None) -> Path:
    column = pa.array([{"bytes": blob, "path": f"{i}.png"} for i, blob in enumerate(blobs)], IMAGE)
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=7)
    return path


def write_set(root: Path, n: int = 30, **options) -> tuple[np.ndarray, np.ndarray]:
    """Two training files and one of test, in 3 classes; returns the pixels of both parts."""
    train, test = pixels(n), pixels(12, 1)
    labels = [i % 3 for i in range(n)]
    half = n // 2
    write(root / "train-00000-of-00002.parquet", [encode(x) for x in train[:half]], labels[:half], **options)
    write(root / "train-00001-of-00002.parquet", [encode(x) for x in train[half:]], labels[half:], **options)
    write(root / "test-00000-of-00001.parquet", [encode(x) for x in test], [i % 3 for i in range(12)], **options)
    return train, test


def load(root: Path, **changes) -> ImageData:
    return load_data(DataSettings(name=f"parquet:{root}", **changes))


def fails(root: Path, message: str, **changes) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(root, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "label", "subfolder"),
    [("img", "label", "."), ("image", "fine_label", "data"), ("image", "labels", ".")],
)
def test_layout(tmp_path: Path, image: str, label: str, subfolder: str):
    train, test = write_set(tmp_path / subfolder, image=image, label=label)
    data = load(tmp_path)
    assert data.image_shape == (3, 5, 6)
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 12)
    assert data.test.indices.tolist() == list(range(30, 42))
    assert np.array_equal(data.test.images.numpy(), test)
    assert np.array_equal(data.train.images.numpy(), train[data.train.indices])
    assert torch.equal(data.train.labels, data.train.indices % 3)
    assert torch.bincount(data.val.labels).tolist() == [2, 2, 2]


def test_class_names_from_the_metadata(tmp_path: Path):
    features = {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}
    write_set(tmp_path, meta={"huggingface": json.dumps({"info": {"features": features}})})
    assert load(tmp_path).classes == ("ant", "bee", "cow")


def test_a_published_validation_part_is_used(tmp_path: Path):
    write_set(tmp_path)
    held = pixels(6, 2)
    write(tmp_path / "validation-00000-of-00001.parquet", [encode(x) for x in held], [0, 1, 2] * 2)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 6, 12)
    assert data.val.indices.tolist() == list(range(30, 36))
    assert np.array_equal(data.val.images.numpy(), held)


def test_without_a_test_file_a_fifth_is_held_out(tmp_path: Path):
    write_set(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (19, 5, 6)
    assert torch.equal(load(tmp_path, split_seed=5).test.indices, data.test.indices)


def test_modes_and_formats(tmp_path: Path):
    grey = [Image.fromarray(x[..., 0]) for x in pixels(12)]
    write(tmp_path / "grey" / "train.parquet", [encode(x) for x in grey], [0, 1] * 6)
    data = load(tmp_path / "grey")
    assert data.image_shape == (1, 5, 6)
    assert np.array_equal(data.train.images[0, ..., 0].numpy(), np.asarray(grey[data.train.indices[0]]))
    colours = [Image.fromarray(x) for x in pixels(12)]
    mixed = [
        encode(c, "BMP") if i % 2 else encode(g, "JPEG") for i, (c, g) in enumerate(zip(colours, grey, strict=True))
    ]
    mixed[3] = encode(colours[3].convert("P"), transparency=bytes([0] * 9))
    mixed[5] = encode(colours[5].convert("RGBA"))
    write(tmp_path / "mixed" / "train.parquet", mixed, [0, 0, 1] * 4)
    assert load(tmp_path / "mixed").image_shape == (3, 5, 6)


def test_images_of_different_sizes(tmp_path: Path):
    blobs = [encode(x) for x in pixels(12)]
    blobs[7] = encode(pixels(1, size=(9, 4))[0])
    write(tmp_path / "train.parquet", blobs, [0, 1] * 6)
    message = r"12 images have 2 sizes: 6x5 \(11 images\), 9x4 \(1 image\); set `data.image_size`"
    fails(tmp_path, message)
    data = load(tmp_path, image_size=4)
    assert data.image_shape == (3, 4, 4)
    assert data.settings.image_size == 4


def test_resizing_keeps_the_middle(tmp_path: Path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    dark = wide // 2
    write(tmp_path / "train.parquet", [encode(wide), encode(dark)] * 4, [0, 1] * 4)
    assert load(tmp_path, image_size=10).train.images.unique().tolist() == [100, 200]


def test_train_images_decodes_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lowrank.data.reading import image_store as stores

    write_set(tmp_path, n=90)
    decoded = []
    original = stores.decode_image
    monkeypatch.setattr(stores, "decode_image", lambda *a: decoded.append(a[1]) or original(*a))
    data = load(tmp_path, train_images=12)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 12)
    assert len(decoded) == 24
    assert not any("test-00000" in origin for origin in decoded)
    first = data.test.images
    assert len(decoded) == 36
    assert data.test.images is first
    assert len(decoded) == 36


@pytest.mark.parametrize("changes", [{}, {"train_images": 9}, {"resident_mb": 0}])
def test_fingerprint(tmp_path: Path, changes: dict):
    write_set(tmp_path / "a")
    base = load(tmp_path / "a", **changes).fingerprint
    write_set(tmp_path / "b")
    assert load(tmp_path / "b", **changes).fingerprint == base  # the folder's own name says nothing
    test = pixels(12, 1)
    test[3, 2, 2] = 255 - test[3, 2, 2]
    write(tmp_path / "b" / "test-00000-of-00001.parquet", [encode(x) + b"." for x in test], [i % 3 for i in range(12)])
    clear_cache()
    assert load(tmp_path / "b", **changes).fingerprint != base
    write_set(tmp_path / "b")
    names = {"label": {"names": ["x", "y", "z"]}}
    write_set(tmp_path / "b", meta={"huggingface": json.dumps({"info": {"features": names}})})
    clear_cache()
    assert load(tmp_path / "b", **changes).fingerprint != base


def test_streamed_equals_resident(tmp_path: Path):
    write_set(tmp_path)
    resident, streamed = load(tmp_path), load(tmp_path, resident_mb=0)
    views = AugmentationSettings(shift=1, flip=True, cutout=2)
    for workers in (0, 2):
        resident_batches = list(train_batches(resident, "cpu", 8, augmentation=views, order_seed=0, epoch=0))
        streamed_batches = list(
            train_batches(streamed, "cpu", 8, augmentation=views, order_seed=0, epoch=0, workers=workers)
        )
        resident_batches += list(eval_batches(resident, "test", "cpu", 8))
        streamed_batches += list(eval_batches(streamed, "test", "cpu", 8, workers=workers))
        assert len(resident_batches) == len(streamed_batches) == 5
        for a, b in zip(resident_batches, streamed_batches, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("changes", [{}, {"train_images": 9}])
def test_encoded_images_are_freed_once_decoded(tmp_path: Path, changes: dict):
    write_set(tmp_path)
    data = load(tmp_path, **changes)
    assert len(data.test.images) == 12
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    assert len(data.test.images) == 12
    with pytest.raises(InputError, match=r"test-00000-of-00001\.parquet: must be a whole, readable Parquet file"):
        data.test.decode(torch.arange(12))


def test_hashing_a_test_split_frees_it(tmp_path: Path):
    write_set(tmp_path)
    data = load(tmp_path, train_images=9)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"test-00000-of-00001\.parquet: must be a whole, readable Parquet file"):
        _ = data.test.images


def test_encoded_images_of_a_streamed_set_are_shared_with_the_workers(tmp_path: Path):
    _, test = write_set(tmp_path)
    data = load(tmp_path, resident_mb=0)
    assert len(list(eval_batches(data, "test", "cpu", 6, workers=1))) == 2
    (tmp_path / "test-00000-of-00001.parquet").unlink()  # this process has read it for them
    assert np.array_equal(data.test.decode(torch.arange(12)).numpy(), test)


def test_processes_of_earlier_epochs_do_without_row_groups_in_later_passes_too(tmp_path: Path):
    """Those that decoded training images are replaced once the test images are copied for reading in any order."""
    _, test = write_set(tmp_path)
    data, pids, images = load(tmp_path, resident_mb=0), [], []
    with closing(DecoderPool()) as pool:
        for split in ("train", "test", "test", "train"):
            batches = list(eval_batches(data, split, "cpu", 6, workers=1, decoders=pool))
            pids.append({child.pid for child in multiprocessing.active_children() if child.name == "decoder"})
            images.append(torch.cat([batch[0] for batch in batches]))
            if split == "test":
                (tmp_path / "test-00000-of-00001.parquet").unlink(missing_ok=True)
    assert pids[0] != pids[1] == pids[2] == pids[3]
    assert torch.equal(images[1], images[2])
    assert torch.equal(images[0], images[3])
    assert len(images[1]) == len(test)


def test_shards_that_start_with_a_dot_are_not_used_and_said(tmp_path: Path):
    write_set(tmp_path)
    for name in (".train-00001-of-00002.parquet", ".old/train-0.parquet", "._train-00000-of-00002.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "train-00001-of-00002.parquet").read_bytes())
    assert load(tmp_path).notes == (
        "not used: files whose name, or that of a folder above them, starts with a dot: 2 "
        "(.train-00001-of-00002.parquet, .old/train-0.parquet)",
    )


def test_no_such_folder(tmp_path: Path):
    fails(tmp_path / "none", rf"^data set 'parquet:{tmp_path}/none': there is no such file or folder$")


def test_no_training_file(tmp_path: Path):
    (tmp_path / "cats.csv").touch()
    fails(tmp_path, r"must hold train\.parquet or train-NUMBER\.parquet, .*, but it begins with: cats\.csv$")


def test_a_truncated_file(tmp_path: Path):
    write_set(tmp_path)
    path = tmp_path / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-300])
    fails(tmp_path, rf"^{path}: must be a whole, readable Parquet file, but ")


def test_a_file_damaged_in_the_middle(tmp_path: Path):
    write_set(tmp_path)
    path = tmp_path / "train-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    fails(tmp_path, rf"^{path}: must be a whole, readable Parquet file, but ")


def test_a_broken_image(tmp_path: Path):
    blobs = [encode(x, "JPEG") for x in pixels(12)]
    blobs[5] = blobs[5][:-40]
    path = write(tmp_path / "train.parquet", blobs, [0, 1] * 6)
    fails(tmp_path, rf"^{path}, row 5: must be a readable image, but image file is truncated \(\d+ bytes not proc")
    write(path, [b"not an image", *blobs[:5]], [0, 1] * 3)
    fails(
        tmp_path,
        rf"^{path}, row 0: must be a readable image, but its bytes are of no format that Pillow reads; "
        "`data.skip_broken: 1` would leave it out$",
    )


def test_an_image_without_bytes(tmp_path: Path):
    path = write(tmp_path / "train.parquet", [None, *(encode(x) for x in pixels(7))], [0, 1] * 4)
    fails(tmp_path, rf"^{path}, row 0: must be a readable image, but has no bytes; ")


def test_columns(tmp_path: Path):
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(8)], [0, 1] * 4, image="picture")
    fails(tmp_path, rf"^{path}: no image column; it must be one of img, image, or named by `data.image`, but .* pict")
    write(path, [encode(x) for x in pixels(8)], [0, 1] * 4, label="kind")
    fails(tmp_path, rf"^{path}: no label column; it must be one of label, fine_label, labels, or named by `data.label`")
    pq.write_table(pa.table({"img": ["1.png"], "label": [0]}), path)
    fails(tmp_path, rf"^{path}: column 'img' must hold encoded images, or be a struct with `bytes`, but is string$")
    struct = pa.array([{"bytes": b"", "path": ""}], IMAGE)
    pq.write_table(pa.table({"img": struct, "label": [0.5]}), path)
    fails(tmp_path, rf"^{path}: column 'label' must hold integers or texts, but holds 0\.5$")
    fails(tmp_path, rf"^unknown column \(`data.label`\) of {path} 'kind'; choose from: img, label$", label="kind")


def test_whole_numbers_as_floats_are_labels(tmp_path: Path):
    """Pandas makes floats of integers where some are missing."""
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0] * 30)
    table = pq.read_table(path).drop_columns("label")
    pq.write_table(table.append_column("label", pa.array([0.0, 2.0, 1.0] * 10)), path)
    data = load(tmp_path)
    assert data.classes == ("0", "1", "2")
    assert (data.train.labels == torch.tensor([0, 2, 1])[data.train.indices % 3]).all()
    clear_cache()
    for gap in (float("nan"), None):
        pq.write_table(table.append_column("label", pa.array([0.0, gap, 1.0] * 10)), path)
        fails(tmp_path, rf"^{path}: column 'label' must not have gaps, but got 10$")


def test_columns_in_any_case(tmp_path: Path):
    write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0, 1] * 15, image="Image", label="LABEL")
    assert load(tmp_path).notes == ()


def test_another_column_of_labels_is_said(tmp_path: Path):
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0, 1] * 15)
    pq.write_table(pq.read_table(path).append_column("fine_label", pa.array([0, 1, 2] * 10)), path)
    data = load(tmp_path)
    assert data.classes == ("0", "1")
    assert data.notes == ("not used: columns that may hold labels too: 1 (fine_label)",)
    assert load(tmp_path, label="fine_label").notes == ()


def test_a_number_beyond_the_images_is_refused(tmp_path: Path):
    """No network could have an output for each number up to it; to list as many classes would take for ever."""
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(12)], [0, 2**40] * 6)
    fails(
        tmp_path, rf"^{path}: labels must count classes from 0, below the 12 images that there are, but got 1,099,511,"
    )


def test_numbers_that_no_image_has_are_said(tmp_path: Path):
    write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0, 5] * 15)
    assert load(tmp_path).notes == ("without images in the training part: 4 of 6 classes ('1', '2', '3', ...)",)


def test_the_headers_of_another_column_are_not_taken(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lowrank.data.reading.image_scan.MIN_CACHED_IMAGES", 0)
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0, 1] * 15)
    small = pa.array([{"bytes": encode(x), "path": ""} for x in pixels(30, size=(3, 2))], IMAGE)
    pq.write_table(pq.read_table(path).append_column("thumbnail", small), path)
    assert load(tmp_path).image_shape == (3, 5, 6)
    assert load(tmp_path, image="thumbnail").image_shape == (3, 2, 3)


def test_labels(tmp_path: Path):
    blobs = [encode(x) for x in pixels(8)]
    path = write(tmp_path / "train.parquet", blobs, [0, 1, None, 1] * 2)
    fails(tmp_path, rf"^{path}: column 'label' must not have gaps, but got 2$")
    write(path, blobs, [0, -1] * 4)
    fails(tmp_path, rf"^{path}: labels must be at least 0, but got -1 in 4 of 8 rows$")
    names = {"label": {"names": ["x", "y"]}}
    write(path, blobs, [0, 2] * 4, meta={"huggingface": json.dumps({"info": {"features": names}})})
    fails(tmp_path, rf"^{path}: labels must be from 0 to 1, but got 2 in 4 of 8 rows$")
    write(path, [], [])
    fails(tmp_path, rf"^{path}: must have at least one row$")


def test_real_images_of_cifar10():
    data = load(CIFAR10, train_images=200)
    assert data.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.val), len(data.test)) == (200, 60, 50)
    assert torch.bincount(data.train.labels).tolist() == [20] * 10
    assert data.mean == pytest.approx((0.49, 0.48, 0.45), abs=0.02)
    assert data.std == pytest.approx((0.25, 0.24, 0.26), abs=0.02)
    images, labels, indices = next(
        train_batches(
            data, "cpu", 128, augmentation=AugmentationSettings(shift=4, flip=True, cutout=8), order_seed=0, epoch=0
        )
    )
    assert images.shape == (128, 3, 32, 32)
    assert float(images.mean()) == pytest.approx(0, abs=0.1)
    assert len(indices.unique()) == len(labels) == 128


def names_of(*classes: str) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {"label": {"names": list(classes)}}}})}


def coloured(values: list[int]) -> list[bytes]:
    """Images of one grey value each, by which a test knows them again."""
    return [encode(np.full((4, 4, 3), value, np.uint8)) for value in values]


class TestParts:
    """Which file belongs to which part, and what is said of the others."""

    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("train", "val", "test"),
            ("training-00000-of-00001", "valid-00000-of-00001", "testing-00000-of-00001"),
            ("Train-0", "dev-0", "TEST-0"),
            ("train-00000-of-00001-abcdef", "validation_0", "test.0"),
            ("default/train/0000", "default/validation/0000", "default/test/0000"),
            ("data/train-0", "data/val-0", "data/test-0"),
        ],
    )
    def test_usual_names(self, tmp_path: Path, train: str, val: str, test: str):
        for number, (name, count) in enumerate([(train, 12), (val, 4), (test, 2)]):
            write(tmp_path / f"{name}.parquet", [encode(x) for x in pixels(count, number)], [0, 1] * (count // 2))
        data = load(tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (12, 4, 2)
        assert data.notes == ()

    @pytest.mark.parametrize("name", ["train_unlabelled-0", "train-unlabelled-0", "trained", "extra-00000-of-00001"])
    def test_files_of_another_name_are_not_used_and_said(self, tmp_path: Path, name: str):
        write_set(tmp_path)
        base = load(tmp_path).fingerprint
        write(tmp_path / f"{name}.parquet", [encode(x) for x in pixels(20, 7)], [0, 1] * 10)
        clear_cache()
        data = load(tmp_path)
        assert data.notes == (f"not used: Parquet files: 1 ({name}.parquet)",)
        assert data.fingerprint == base

    def test_a_part_under_two_names_is_refused(self, tmp_path: Path):
        write_set(tmp_path)
        for name in ("val-0", "dev-0"):
            write(tmp_path / f"{name}.parquet", [encode(x) for x in pixels(6, 7)], [0, 1, 2] * 2)
        fails(tmp_path, "a validation part must have one name, but there are dev, val; keep one$")

    def test_several_configurations_are_refused(self, tmp_path: Path):
        for name in ("small", "large"):
            write(tmp_path / name / "train" / "0000.parquet", [encode(x) for x in pixels(12)], [0, 1] * 6)
        fails(tmp_path, rf"the folder holds several sets \(large, small\); name one, such as parquet:{tmp_path}/large$")
        assert len(load(tmp_path / "small").train) > 0

    def test_a_test_part_without_labels_is_replaced(self, tmp_path: Path):
        write_set(tmp_path)
        write(tmp_path / "test-00000-of-00001.parquet", [encode(x) for x in pixels(12, 1)], [-1] * 12)
        data = load(tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (19, 5, 6)
        assert data.notes == ("not used: files of a test part without labels: 1 (test-00000-of-00001.parquet)",)
        write(tmp_path / "test-00000-of-00001.parquet", [encode(x) for x in pixels(12, 1)], [-1, 1] * 6)
        clear_cache()
        fails(
            tmp_path,
            rf"^{tmp_path}/test-00000-of-00001.parquet: labels must be at least 0, but got -1 in 6 of 12 rows",
        )

    @pytest.mark.parametrize("part", ["test", "validation"])
    @pytest.mark.parametrize("column", ["none", "missing", "-1"])
    def test_a_part_without_labels_is_not_used_and_said(self, tmp_path: Path, part: str, column: str):
        write(tmp_path / "train.parquet", [encode(x) for x in pixels(30)], [0, 1] * 15)
        path = tmp_path / f"{part}.parquet"
        write(path, [encode(x) for x in pixels(6, 1)], [None if column == "none" else -1] * 6)
        if column == "missing":
            pq.write_table(pq.read_table(path).drop_columns("label"), path)
        data = load(tmp_path)
        assert sum(map(len, (data.train, data.val, data.test))) == 30
        assert data.notes == (f"not used: files of a {part} part without labels: 1 ({part}.parquet)",)

    @pytest.mark.parametrize("folder", ["", "data", "deep/link"])
    def test_a_single_file_of_any_name_is_the_set(self, tmp_path: Path, folder: str):
        images = pixels(30)
        write(tmp_path / "set" / folder / "0000.parquet", [encode(x) for x in images], [0, 1] * 15)
        for name in (tmp_path / "set", tmp_path / "set" / folder / "0000.parquet"):
            data = load(name)
            for split in (data.train, data.val, data.test):
                assert np.array_equal(split.images, images[split.indices])
                assert (split.labels == split.indices % 2).all()

    def test_a_single_file_may_have_a_column_of_parts(self, tmp_path: Path):
        images, parts = pixels(40), ["train", "Test", "train", "dev", "train", "unlabelled", "train", None] * 5
        labels = [i // 3 % 2 for i in range(40)]
        path = write(tmp_path / "all.parquet", [encode(x) for x in images], labels)
        pq.write_table(pq.read_table(path).append_column("Split", pa.array(parts)), path, row_group_size=7)
        data, streamed = load(tmp_path), load(tmp_path, resident_mb=0)
        for split, name in ((data.train, "train"), (data.val, "dev"), (data.test, "Test")):
            rows = [row for row, part in enumerate(parts) if part == name]
            assert np.array_equal(split.images, images[rows])
            assert split.labels.tolist() == [labels[row] for row in rows]
            other = streamed.split(split.name)
            assert torch.equal(other.decode(torch.arange(len(rows))), split.images)
            other.store.preload(other.indices.numpy())
            assert torch.equal(other.decode(torch.arange(len(rows))), split.images)
        assert data.train.store.origin(5) == f"{path}, row 10"
        assert data.notes == (
            "not used: images of the part 'unlabelled': 5 (row 5, row 13, row 21, ...)",
            "not used: images without a part: 5 (row 7, row 15, row 23, ...)",
        )

    @pytest.mark.parametrize("missing", [-1, None])
    def test_rows_of_a_part_without_labels_are_left_out_of_a_single_file(self, tmp_path: Path, missing):
        labels = [missing if i % 3 == 2 else i // 3 % 2 for i in range(36)]
        path = write(tmp_path / "all.parquet", [encode(x) for x in pixels(36)], labels)
        parts = pa.array(["train", "train", "test"] * 12)
        pq.write_table(pq.read_table(path).append_column("split", parts), path)
        data = load(tmp_path)
        assert data.notes == ("not used: images of a test part without labels: 12 (row 2, row 5, row 8, ...)",)
        for split in (data.train, data.val, data.test):
            rows = [i for i in range(36) if i % 3 < 2]
            assert split.labels.tolist() == [labels[rows[index]] for index in split.indices.tolist()]
            assert np.array_equal(split.images, pixels(36)[[rows[index] for index in split.indices.tolist()]])

    def test_a_column_that_names_no_training_part(self, tmp_path: Path):
        path = write(tmp_path / "all.parquet", [encode(x) for x in pixels(12)], [0, 1] * 6)
        pq.write_table(pq.read_table(path).append_column("set", pa.array([0, 1] * 6)), path)
        fails(tmp_path, rf"^{path}: column 'set' must name a training part \(train\|training\), but has 0, 1$")

    def test_missing_shards_are_said(self, tmp_path: Path):
        write_set(tmp_path)
        (tmp_path / "train-00000-of-00002.parquet").unlink()
        assert load(tmp_path).notes == ("missing, by the names of the other files: train-00000-of-00002.parquet",)
        for number in (0, 1):
            old = tmp_path / f"train-0000{number}-of-00002.parquet"
            if old.exists():
                old.rename(tmp_path / "train-00003-of-00009.parquet")
        clear_cache()
        assert load(tmp_path).notes == (
            "missing, by the names of the other files: train-00000-of-00009.parquet, train-00001-of-00009.parquet, "
            "train-00002-of-00009.parquet, 5 more",
        )

    def test_names_in_upper_case_and_folders_that_spark_writes(self, tmp_path: Path):
        write_set(tmp_path / "upper")
        (tmp_path / "upper" / "test-00000-of-00001.parquet").rename(tmp_path / "upper" / "TEST.PARQUET")
        assert len(load(tmp_path / "upper").test) == 12
        for part, count in (("train", 30), ("test", 6)):
            path = tmp_path / "spark" / f"{part}.parquet" / "part-00000-c0ffee.snappy.parquet"
            write(path, [encode(x) for x in pixels(count, count)], [0, 1] * (count // 2))
        assert len(load(tmp_path / "spark").test) == 6

    def test_a_file_that_contradicts_its_name_is_refused(self, tmp_path: Path):
        """Rows of the test part must not be trained on because their file is named `train`."""
        path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(12)], [0, 1] * 6)
        table = pq.read_table(path)
        pq.write_table(table.append_column("split", pa.array(["train"] * 12)), path)
        assert load(tmp_path).notes == ()
        pq.write_table(table.append_column("split", pa.array(["train", "train", "test"] * 4)), path)
        clear_cache()
        fails(
            tmp_path,
            rf"^{path}: column 'split' says test, but the file is named as the training part; name the file itself to "
            rf"use its column, such as parquet:{path}$",
        )
        assert len(load(path).test) == 4

    def test_folders_may_be_links_even_in_a_circle(self, tmp_path: Path):
        write_set(tmp_path / "real")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "data").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
        assert len(load(tmp_path / "set").test) == 12


class TestClasses:
    """Names of classes decide, whatever numbers a file gives them."""

    def test_files_with_their_names_in_another_order(self, tmp_path: Path):
        write(tmp_path / "train-0.parquet", coloured([10, 20] * 6), [0, 1] * 6, meta=names_of("cat", "dog"))
        write(tmp_path / "train-1.parquet", coloured([10, 20] * 6), [1, 0] * 6, meta=names_of("dog", "cat"))
        write(tmp_path / "test-0.parquet", coloured([10, 20]), [2, 0], meta=names_of("dog", "bird", "cat"))
        data = load(tmp_path)
        assert data.classes == ("cat", "dog")
        for split in (data.train, data.val, data.test):
            assert torch.equal(split.labels, (split.images[:, 0, 0, 0] == 20).long())

    def test_a_class_that_only_another_file_names_is_refused(self, tmp_path: Path):
        write(tmp_path / "train-0.parquet", coloured([10, 20] * 6), [0, 1] * 6, meta=names_of("cat", "dog"))
        path = write(tmp_path / "test-0.parquet", coloured([10, 20]), [0, 1], meta=names_of("cat", "fox"))
        fails(
            tmp_path,
            rf"^{path}: its class 'fox' must be one of those of {tmp_path}/train-0.parquet, but they are cat, dog",
        )

    def test_names_that_occur_twice_need_one_order(self, tmp_path: Path):
        write(
            tmp_path / "train-0.parquet", coloured([1, 2, 3] * 4), [0, 1, 2] * 4, meta=names_of("crane", "crane", "cat")
        )
        assert load(tmp_path).classes == ("crane", "crane", "cat")
        clear_cache()
        write(tmp_path / "test-0.parquet", coloured([1, 2]), [0, 1], meta=names_of("cat", "crane", "crane"))
        fails(tmp_path, "its classes must be named in the order of .*, for some share a name$")

    def test_texts_as_labels(self, tmp_path: Path):
        for name, texts in (("train-0", ["dog", "ant", "cow"] * 4), ("test-0", ["cow", "ant"])):
            struct = pa.array([{"bytes": blob, "path": ""} for blob in coloured(list(range(len(texts))))], IMAGE)
            pq.write_table(pa.table({"image": struct, "label": texts}), tmp_path / f"{name}.parquet")
        data = load(tmp_path)
        assert data.classes == ("ant", "cow", "dog")
        assert data.test.labels.tolist() == [1, 0]

    def test_columns_by_name(self, tmp_path: Path):
        blobs = coloured(list(range(12)))
        table = {"scan": pa.array(blobs, pa.binary()), "grade": pa.array(["2", "10", "1"] * 4).dictionary_encode()}
        pq.write_table(pa.table({**table, "label": [0] * 12}), tmp_path / "train.parquet")
        data = load(tmp_path, image="scan", label="grade")
        assert data.classes == ("1", "2", "10")
        assert torch.equal(data.test.labels, torch.tensor([1, 2, 0])[data.test.indices % 3])
        assert torch.equal(data.test.images[:, 0, 0, 0].long(), data.test.indices)


class TestStreaming:
    """A streamed set is read by row groups, and copied once for reading in any order."""

    def test_no_more_than_some_row_groups_are_held(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(parquet_store, "HELD_BYTES", 0)
        reads = []
        original = parquet_store.ParquetImages.read_group
        monkeypatch.setattr(
            parquet_store.ParquetImages, "read_group", lambda file, group: reads.append(group) or original(file, group)
        )
        write_set(tmp_path, n=60)  # 2 x 5 row groups of training, 2 of test
        data = load(tmp_path, resident_mb=0, image_size=4, channels=3)
        assert len(data.train.store._groups) <= 2
        reads.clear()
        positions = torch.randperm(len(data.train))
        images = data.train.decode(positions, threads=1)
        assert len(reads) == 10  # each row group once, although the order is random
        assert images.equal(data.train.decode(torch.arange(len(positions)), threads=1)[positions])

    def test_the_copy_is_made_once_and_gives_the_same_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        _, test = write_set(tmp_path)
        order = torch.randperm(12)
        for _ in range(2):
            clear_cache()
            data = load(tmp_path, resident_mb=0)
            data.test.store.preload(data.test.indices.numpy())
            monkeypatch.setattr(parquet_store.ParquetImages, "read_group", lambda *_: pytest.fail("read again"))
            assert np.array_equal(data.test.decode(order).numpy(), test[order])
            assert len(list((tmp_path / "cache").glob("*.images"))) == 1
            monkeypatch.undo()
            monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    @pytest.mark.parametrize("damage", ["an image", "the list of images", "its end"])
    def test_a_damaged_copy_is_not_used(self, tmp_path: Path, damage: str):
        _, test = write_set(tmp_path)
        data = load(tmp_path, resident_mb=0)
        data.test.store.preload(data.test.indices.numpy())
        (path,) = (tmp_path / "cache").glob("*.images")
        content = bytearray(path.read_bytes())
        if damage == "an image":
            content[:50] = bytes(50)
        elif damage == "the list of images":
            content[-20:-10] = bytes(10)
        path.write_bytes(content[:-30] if damage == "its end" else content)
        clear_cache()
        data = load(tmp_path, resident_mb=0)
        data.test.store.preload(data.test.indices.numpy())
        assert np.array_equal(data.test.decode(torch.arange(12)).numpy(), test)

    def test_without_room_for_a_copy_row_groups_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("lowrank.data.reading.disk_cache.MAX_BYTES", 100)
        _, test = write_set(tmp_path)
        data = load(tmp_path, resident_mb=0)
        with pytest.warns(
            UserWarning, match=r"are read by row groups, .* has no room for a copy .*LOWRANK_IMAGE_CACHE$"
        ):
            batches = list(eval_batches(data, "test", "cpu", 5, workers=0))
        assert np.array_equal(data.test.decode(torch.arange(12)).numpy(), test)
        assert sum(len(batch[1]) for batch in batches) == 12

    def test_the_store_can_be_sent_to_another_process(self, tmp_path: Path):
        _, test = write_set(tmp_path)
        data = load(tmp_path, resident_mb=0)
        data.test.store.preload(data.test.indices.numpy())
        store = pickle.loads(pickle.dumps(data.test.store))
        assert np.array_equal(store.decode(data.test.indices.numpy()), test)


def test_spaces_around_texts_make_no_classes(tmp_path: Path):
    struct = pa.array([{"bytes": encode(image), "path": ""} for image in pixels(30)], IMAGE)
    texts = [["cat", " dog", "cat ", "dog"][i % 4] for i in range(30)]
    pq.write_table(pa.table({"image": struct, "label": texts}), tmp_path / "train.parquet")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    for split in (data.train, data.val, data.test):
        assert split.labels.tolist() == [index % 2 for index in split.indices.tolist()]
