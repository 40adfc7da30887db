"""Data sets that come with a library: scikit-learn's digits, and those that torchvision reads and downloads."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank.data.reading.image_store import ArrayStore
from lowrank.data.reading.source import ImageSource
from lowrank.errors import InputError
from lowrank.utils import file_hash, hold_lock, one_line, remove_leftovers, sync, temporary_path, write_text


class BuiltinSet(NamedTuple):
    """Properties of a built-in set that are known before its images are read."""

    image_shape: tuple[int, int, int]  # (C, H, W)
    classes: int


BUILTIN_SETS = {
    "digits": BuiltinSet((1, 8, 8), 10),
    "cifar10": BuiltinSet((3, 32, 32), 10),
    "cifar100": BuiltinSet((3, 32, 32), 100),
    "fashion_mnist": BuiltinSet((1, 28, 28), 10),
}
_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
_UNREADABLE = (RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError, IndexError, AssertionError)


@dataclass
class Digits:
    """scikit-learn's handwritten digits as its file has them."""

    images: NDArray[np.int64]  # (N, 8, 8), from 0 to 16
    labels: NDArray[np.int64]  # (N,)
    names: list[str]  # of the classes


def load_digits() -> Digits:
    """Read scikit-learn's file of digits as its own `load_digits` does.

    That function would import scipy and pandas, which takes longer than torch.

    Returns:
        The digits.

    Raises:
        InputError: scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise InputError("the data set digits comes with scikit-learn, which is not installed")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # a row an image: 64 pixels, then the class
    return Digits(table[:, :-1].reshape(-1, 8, 8), table[:, -1].copy(), [str(digit) for digit in range(10)])


def read_digits() -> ImageSource:
    """Read 1,797 grey images of 8x8 in 10 classes from scikit-learn's own files; no test part is published.

    Returns:
        The set.
    """
    digits = load_digits()
    pixels = ((digits.images * 255 + 8) // 16).astype(np.uint8)  # 0..16 to 0..255
    return ImageSource(
        classes=tuple(digits.names),
        labels=digits.labels,
        store=ArrayStore(pixels[..., None]),
        training=np.arange(len(pixels)),
    )


def read_torchvision(name: str, root: Path, download: bool) -> ImageSource:
    """Read a set from torchvision's files.

    Args:
        name: cifar10, cifar100 or fashion_mnist.
        root: the folder of the files.
        download: whether torchvision may download what is missing.

    Returns:
        The set.

    Raises:
        InputError: a file is damaged, or missing and cannot be downloaded.
    """
    from lowrank.utils import torchvision  # costs seconds to import

    maker = getattr(torchvision.datasets, _TORCHVISION[name])
    absent = [path for path, _ in _files(maker, root) if not path.is_file()]
    if absent and not download:
        raise InputError(
            f"data set {name!r} is not complete under {root}: {absent[0]} is missing; "
            f"allow the download, put the file there, or use digits, parquet:DIR or folder:DIR"
        )
    if absent:
        with _downloading(root, name):
            if any(not path.is_file() for path, _ in _files(maker, root)):  # no other process has done it meanwhile
                _download(maker, name, root)
    _check_files(maker, name, root)
    parts = [_read_part(maker, name, root, train) for train in (True, False)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*((p[0], p[1]) for p in parts), strict=True))
    count = len(parts[0][0])
    return ImageSource(
        classes=parts[0][2],
        labels=labels,
        store=ArrayStore(images),
        training=np.arange(count),
        test=np.arange(count, len(images)),
    )


def _files(maker: Any, root: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files that torchvision reads, each with its md5 where torchvision checks one."""
    if hasattr(maker, "base_folder"):
        for name, md5 in [*maker.train_list, *maker.test_list, (maker.meta["filename"], maker.meta["md5"])]:
            yield root / maker.base_folder / name, md5
        return
    for name, _ in maker.resources:
        yield root / maker.__name__ / "raw" / Path(name).stem, None


@contextmanager
def _downloading(root: Path, name: str) -> Iterator[None]:
    """Let one process at a time download into a folder; the others wait."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(hold_lock(root / f".{name}.lock"))
            yield
    except OSError as error:
        raise InputError(f"data set {name!r} is not under {root} and cannot be put there: {one_line(error)}") from error


def _download(maker: Any, name: str, root: Path) -> None:
    """Download into a folder beside the target, so that the target never has half of a file.

    Where torchvision checks no md5 of the unpacked files, theirs are noted: damage that comes later is seen.
    """
    temporary = temporary_path(root / name)
    try:
        remove_leftovers(root)
        temporary.mkdir()
        maker(str(temporary), train=True, download=True)
        for (path, md5), (target, _) in zip(_files(maker, temporary), _files(maker, root), strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            if md5 is None:
                write_text(_note_of(target), file_hash(path))
            sync(path)
            path.replace(target)
    except (*_UNREADABLE, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        raise InputError(
            f"data set {name!r} is not under {root} and could not be downloaded ({one_line(error)}); "
            f"put torchvision's files there, or use digits, parquet:DIR or folder:DIR"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _note_of(path: Path) -> Path:
    """The file that holds the sha256 of a downloaded file."""
    return path.with_name(f"{path.name}.sha256")


def _check_files(maker: Any, name: str, root: Path) -> None:
    for path, md5 in _files(maker, root):
        if md5 is None:
            _check_idx(path, name)
            _check_note(path, name)
            continue
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != md5:
            raise InputError(
                f"data set {name!r}: {path} is damaged: its md5 must be {md5}, but got {digest}; "
                f"delete it to download it again, or put the right file there"
            )


def _check_note(path: Path, name: str) -> None:
    """Check a file against the sha256 that was noted when it was downloaded, if it was."""
    note = _note_of(path)
    if note.is_file() and (digest := file_hash(path)) != note.read_text(encoding="utf-8").strip():
        raise InputError(
            f"data set {name!r}: {path} is damaged: its sha256 must be that of {note.name}, but got {digest}; "
            f"delete both to download it again"
        )


def _check_idx(path: Path, name: str) -> None:
    """Check an idx file of bytes: its header must agree with its size."""
    dims = 3 if "images" in path.name else 1
    with path.open("rb") as file:
        header = file.read(4 + 4 * dims)
    expected = bytes([0, 0, 8, dims])
    sides = [int.from_bytes(header[start : start + 4], "big") for start in range(4, len(header), 4)]
    expected_size, size = len(header) + int(np.prod(sides, dtype=np.int64)), path.stat().st_size
    if header[:4] != expected or len(sides) != dims or size != expected_size:
        raise InputError(
            f"data set {name!r}: {path} is damaged: an idx file of bytes in {dims} dimensions must begin with "
            f"{expected.hex()} and have the size that its header says, but it begins with {header[:4].hex()} and has "
            f"{size} bytes; delete it to download it again"
        )


def _read_part(maker: Any, name: str, root: Path, train: bool) -> tuple[Any, Any, tuple[str, ...]]:
    """Read one part: images uint8 (n, H, W, C), labels int64 (n,) and class names."""
    try:
        part = maker(str(root), train=train, download=False)
    except _UNREADABLE as error:
        raise InputError(f"data set {name!r} under {root} cannot be read: {one_line(error)}") from error
    images, labels = np.asarray(part.data, dtype=np.uint8), np.asarray(part.targets, dtype=np.int64)
    classes = tuple(part.classes)
    if len(images) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"data set {name!r} under {root}: the {'training' if train else 'test'} files must hold one label below "
            f"{len(classes)} for each image, but got {len(images)} images and {len(labels)} labels"
        )
    return (images if images.ndim == 4 else images[..., None]), labels, classes
