"""Parquet sets in the Hugging Face layout, whole and damaged."""

from __future__ import annotations

import io
import json
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
    ImageData,
    clear_cache,
    eval_batches,
    load_data,
    train_batches,
)
from lowrank.errors import InputError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CIFAR10 = Path(__file__).resolve().parents[2] / "data" / "cifar10-jpeg"


@pytest.fixture(autouse=True)
def _own_cache():
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
    path = write(tmp_path / "train.parquet", blobs, [0, 1] * 6)
    message = rf"^{path}, row 7: all images must have the size of the first, 6x5, but got 9x4; set `image_size`"
    fails(tmp_path, message)
    data = load(tmp_path, image_size=4)
    assert data.image_shape == (3, 4, 4)
    assert data.settings.image_size == 4


def test_resizing_keeps_the_middle(tmp_path: Path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    write(tmp_path / "train.parquet", [encode(wide)] * 8, [0, 1] * 4)
    assert load(tmp_path, image_size=10).train.images.unique().tolist() == [200]


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


def test_no_such_folder(tmp_path: Path):
    fails(tmp_path / "none", rf"^data set 'parquet:{tmp_path}/none': there is no such folder$")


def test_no_training_file(tmp_path: Path):
    (tmp_path / "cats.csv").touch()
    fails(tmp_path, r"must hold train\*\.parquet, but it begins with: cats\.csv$")


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
    fails(tmp_path, rf"^{path}, row 5: must be a readable image, but ")
    write(path, [b"not an image", *blobs[:5]], [0, 1] * 3)
    fails(tmp_path, rf"^{path}, row 0: must be a readable image, but cannot identify")


def test_sixteen_bits(tmp_path: Path):
    deep = Image.fromarray(np.full((5, 6), 40_000, np.uint16))
    path = write(tmp_path / "train.parquet", [encode(deep)] * 8, [0, 1] * 4)
    fails(tmp_path, rf"^{path}, row 0: images must have 8 bits a channel, but the mode is I;16$")


def test_an_image_without_bytes(tmp_path: Path):
    path = write(tmp_path / "train.parquet", [None, *(encode(x) for x in pixels(7))], [0, 1] * 4)
    fails(tmp_path, rf"^{path}: each image must hold its bytes, but 1 have none$")


def test_columns(tmp_path: Path):
    path = write(tmp_path / "train.parquet", [encode(x) for x in pixels(8)], [0, 1] * 4, image="picture")
    fails(tmp_path, rf"^{path}: no image column; it must be one of img, image, but the columns are picture, label$")
    write(path, [encode(x) for x in pixels(8)], [0, 1] * 4, label="kind")
    fails(
        tmp_path, rf"^{path}: no label column; it must be one of label, fine_label, labels, but the columns are img, k"
    )
    pq.write_table(pa.table({"img": [b"1"], "label": [0]}), path)
    fails(tmp_path, rf"^{path}: column 'img' must be a struct with `bytes`, but is binary$")
    struct = pa.array([{"bytes": b"", "path": ""}], IMAGE)
    pq.write_table(pa.table({"img": struct, "label": ["cat"]}), path)
    fails(tmp_path, rf"^{path}: column 'label' must hold integers, but is string$")


def test_labels(tmp_path: Path):
    blobs = [encode(x) for x in pixels(8)]
    path = write(tmp_path / "train.parquet", blobs, [0, 1, None, 1] * 2)
    fails(tmp_path, rf"^{path}: column 'label' must not have gaps, but got 2$")
    write(path, blobs, [0, -1] * 4)
    fails(tmp_path, r"labels must be from 0 to 0, but got -1$")
    names = {"label": {"names": ["x", "y"]}}
    write(path, blobs, [0, 2] * 4, meta={"huggingface": json.dumps({"info": {"features": names}})})
    fails(tmp_path, r"labels must be from 0 to 1, but got 2$")
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
