"""Images as files in one folder a class: DIR/{train,val,test}/CLASS/* or DIR/CLASS/*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lowrank.data.reading.image_codec import Resize
from lowrank.data.reading.image_store import EncodedStore
from lowrank.data.reading.source import ImageSource
from lowrank.data.splits import Indices
from lowrank.errors import InputError
from lowrank.utils import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class FolderStore(EncodedStore):
    """Image files, each read when it is decoded."""

    def __init__(self, root: Path, names: list[str]) -> None:
        """Take the paths of the files relative to `root`, by global index."""
        self._root = root
        self._names = names

    def read_encoded(self, index: int) -> bytes:
        """See EncodedStore."""
        path = self._root / self._names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: must be readable, but {one_line(error)}") from error

    def origin(self, index: int) -> str:
        """See EncodedStore."""
        return str(self._root / self._names[index])

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore."""
        for index in indices.tolist():
            sha.update(f"{self._names[index]}:{(self._root / self._names[index]).stat().st_size};".encode())

    def preload(self, indices: Indices) -> None:
        """See ImageStore; files are read one by one."""

    def release(self) -> None:
        """See ImageStore; nothing is in memory."""


def read_folder(root: Path, resize: Resize | None) -> ImageSource:
    """Find the images under a folder; the classes are the folders of the training part, in alphabetical order.

    Args:
        root: DIR of the module's docstring.
        resize: how to resize; None where all images have one size.

    Returns:
        The set.

    Raises:
        InputError: there is no such folder, a class is empty, or a part has a class that training lacks.
    """
    if not root.is_dir():
        raise InputError(f"data set 'folder:{root}': there is no such folder")
    split = (root / "train").is_dir()
    parts = [_files(root / part, root) for part in ("train", "val", "test")] if split else [_files(root, root), {}, {}]
    classes = tuple(parts[0])
    if not classes:
        raise InputError(
            f"data set 'folder:{root}': {root / 'train' if split else root} must hold one folder for each class with "
            f"files {', '.join(SUFFIXES)}, but it holds none"
        )
    for part in parts[1:]:
        if untrained := sorted(set(part) - set(classes)):
            raise InputError(
                f"data set 'folder:{root}': class {untrained[0]!r} has no training images; "
                f"the classes of train are {', '.join(classes[:10])}"
            )
    return _make_source(root, classes, parts, resize)


def _files(folder: Path, root: Path) -> dict[str, list[str]]:
    """Map each class to its image files, as paths relative to `root`, all in alphabetical order."""
    if not folder.is_dir():
        return {}
    classes: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not files:
            raise InputError(f"{path}: a class must hold at least one image ({', '.join(SUFFIXES)}), but has none")
        classes[path.name] = [file.relative_to(root).as_posix() for file in files]
    return classes


def _make_source(
    root: Path, classes: tuple[str, ...], parts: list[dict[str, list[str]]], resize: Resize | None
) -> ImageSource:
    names = [name for part in parts for files in part.values() for name in files]
    number = {label: index for index, label in enumerate(classes)}
    labels = [number[label] for part in parts for label, files in part.items() for _ in files]
    ends = np.cumsum([0] + [sum(len(files) for files in part.values()) for part in parts])
    training, validation, test = (np.arange(ends[i], ends[i + 1]) for i in range(3))
    store = FolderStore(root, names)
    store.infer_shape(training, resize)
    return ImageSource(
        classes=classes,
        labels=np.asarray(labels, dtype=np.int64),
        store=store,
        training=training,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
    )
