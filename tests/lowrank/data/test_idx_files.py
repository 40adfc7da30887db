"""Images and labels in idx files, plain and gzipped: what is read, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError

FILES = Path(__file__).parents[2] / "data" / "idx"


def test_the_files_of_mnists_names_are_read() -> None:
    data = load_data(DataSettings(name=f"idx:{FILES}"))
    assert (data.image_shape, data.classes) == ((1, 28, 28), tuple("0123456789"))
    assert (len(data.train) + len(data.val), len(data.test)) == (100, 20)
    pixels = gzip.decompress((FILES / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    test = data.test.on("cpu")
    assert test.images.flatten().tolist() == list(pixels)
    labels = gzip.decompress((FILES / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert test.labels.tolist() == list(labels)


def test_gzipped_and_plain_files_are_the_same_set(tmp_path: Path) -> None:
    for path in FILES.glob("*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    plain, zipped = (load_data(DataSettings(name=f"idx:{folder}")) for folder in (tmp_path, FILES))
    assert plain.fingerprint == zipped.fingerprint
    assert torch.equal(plain.train.labels, zipped.train.labels)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", None, "must have the file train-images-idx3-ubyte"),
        ("train-labels-idx1-ubyte", lambda content: content[:-3], "its header says 100 bytes, but got 97"),
        ("train-labels-idx1-ubyte", lambda content: content + b"x", "its header says 100 bytes, but got more"),
        ("train-images-idx3-ubyte", lambda content: b"\0\0\x0d\3" + content[4:], "must begin with 00000803"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:7] + b"\x05" + content[8:13], "20 images and 5 labels"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0c", "must be below 10"),
        ("train-images-idx3-ubyte", lambda content: content[:4] + b"\xff" * 12, "sizes of at most"),
    ],
)
def test_damage_is_one_line(name: str, change: object, message: str, tmp_path: Path) -> None:
    for path in FILES.glob("*.gz"):
        content = gzip.decompress(path.read_bytes())
        if path.stem != name:
            (tmp_path / path.stem).write_bytes(content)
        elif callable(change):
            (tmp_path / path.stem).write_bytes(change(content))
    with pytest.raises(InputError, match=message) as caught:
        load_data(DataSettings(name=f"idx:{tmp_path}"))
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    for path in FILES.glob("*.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "t10k-images-idx3-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        load_data(DataSettings(name=f"idx:{tmp_path}"))


def test_images_are_not_resized() -> None:
    with pytest.raises(InputError, match="`image_size` is for"):
        load_data(DataSettings(name=f"idx:{FILES}", image_size=14))
