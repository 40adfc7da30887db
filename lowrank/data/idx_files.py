"""Images and labels in idx files, the format of MNIST: a magic number, the sizes of the axes, then the bytes.

`idx:DIR` reads the four files of MNIST's names, gzipped or not, such as those of Debian's package
dataset-fashion-mnist in /usr/share/datasets/fashion-mnist. Source: http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank.data.reading.image_store import ArrayStore
from lowrank.data.reading.source import ImageSource
from lowrank.errors import InputError
from lowrank.utils import one_line

IMAGE_AXES, LABEL_AXES = 3, 1
MAX_BYTES = 4_000_000_000  # of one file: its header may come from anybody
_PREFIXES = {"training": "train", "test": "t10k"}


def read_idx(folder: Path) -> ImageSource:
    """Read a set of four idx files: grey images and labels, for training and for testing.

    Args:
        folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k, each perhaps with .gz.

    Returns:
        The set; its classes are the numbers from 0 to the largest label.

    Raises:
        InputError: a file is missing or damaged, or images and labels do not fit together.
    """
    parts = {part: _read_part(folder, prefix) for part, prefix in _PREFIXES.items()}
    images, labels = (np.concatenate([part[position] for part in parts.values()]) for position in (0, 1))
    count = len(parts["training"][1])
    classes = int(labels[:count].max()) + 1
    if int(labels.max()) >= classes:
        raise InputError(
            f"data set 'idx:{folder}': the test labels must be below {classes}, one more than the largest of training, "
            f"but got {int(labels.max())}"
        )
    return ImageSource(
        classes=tuple(str(number) for number in range(classes)), labels=labels, store=ArrayStore(images[..., None]),
        training=np.arange(count), test=np.arange(count, len(labels)),
    )  # fmt: skip


def _read_part(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = _read_file(folder, f"{prefix}-images-idx3-ubyte", IMAGE_AXES)
    labels = _read_file(folder, f"{prefix}-labels-idx1-ubyte", LABEL_AXES)
    if len(images) != len(labels) or images.size == 0:
        raise InputError(
            f"data set 'idx:{folder}': the {prefix} files must hold a label for each image, but got {len(images)} "
            f"images and {len(labels)} labels"
        )
    return images, labels.astype(np.int64)


def _read_file(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """Read one idx file of bytes with so many axes."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise InputError(f"data set 'idx:{folder}' must have the file {name} or {name}.gz, but it is not there")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            sizes = [int.from_bytes(header[start : start + 4], "big") for start in range(4, len(header), 4)]
            expected = math.prod(sizes)
            if header[:4] != bytes([0, 0, 8, axes]) or len(sizes) != axes or expected > MAX_BYTES:
                raise InputError(
                    f"{path}: an idx file of bytes with {axes} axes must begin with {bytes([0, 0, 8, axes]).hex()} and "
                    f"sizes of at most {MAX_BYTES:,} bytes, but got {header.hex()}"
                )
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    if len(content) != expected:
        count = f"{len(content):,}" if len(content) < expected else "more"
        raise InputError(f"{path}: its header says {expected:,} bytes, but got {count}")
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)
