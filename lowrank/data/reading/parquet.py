"""Images in Parquet files as Hugging Face lays them out: a struct column of encoded bytes and an integer label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowrank.data.reading.image_codec import Resize
from lowrank.data.reading.image_store import EncodedStore
from lowrank.data.reading.source import ImageSource
from lowrank.data.splits import Indices, Labels
from lowrank.errors import InputError
from lowrank.utils import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
_PARTS = ("train", "validation", "test")


class _File:
    """One Parquet file. Its schema is read at once, its images at the first access."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self._image = self._column("image", IMAGE_COLUMNS)
        self._label = self._column("label", LABEL_COLUMNS)
        kind = self.schema.field(self._image).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise InputError(f"{path}: column {self._image!r} must be a struct with `bytes`, but is {kind}")
        if not pa.types.is_integer(self.schema.field(self._label).type):
            label_type = self.schema.field(self._label).type
            raise InputError(f"{path}: column {self._label!r} must hold integers, but is {label_type}")
        self._blobs: tuple[Any, memoryview] | None = None

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.path}: must be a whole, readable Parquet file, but {one_line(error)}")

    def _column(self, what: str, names: tuple[str, ...]) -> str:
        present = [name for name in names if name in self.schema.names]
        if not present:
            raise InputError(
                f"{self.path}: no {what} column; it must be one of {', '.join(names)}, "
                f"but the columns are {', '.join(self.schema.names) or 'none'}"
            )
        return present[0]

    def _read(self, column: str) -> Any:
        try:
            with pq.ParquetFile(self.path) as file:
                return file.read(columns=[column]).column(column)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def labels(self) -> Labels:
        """Return the labels, int64 (rows,)."""
        column = self._read(self._label)
        if column.null_count:
            raise InputError(f"{self.path}: column {self._label!r} must not have gaps, but got {column.null_count}")
        return np.asarray(column.to_numpy(), dtype=np.int64)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names that Hugging Face's library writes into the metadata, if there are any."""
        text = (self.schema.metadata or {}).get(b"huggingface")
        try:
            names = json.loads(text)["info"]["features"][self._label]["names"] if text else None
        except (ValueError, KeyError, TypeError):
            return None
        return tuple(str(name) for name in names) if names else None

    def blob(self, row: int) -> memoryview:
        """Return the encoded image of a row without a copy."""
        if self._blobs is None:
            self._blobs = self._read_blobs()
        offsets, data = self._blobs
        return data[offsets[row] : offsets[row + 1]]

    def _read_blobs(self) -> tuple[Any, memoryview]:
        column = self._read(self._image)
        child = column.type.get_field_index("bytes")
        array = pa.concat_arrays([chunk.flatten()[child].cast(pa.large_binary()) for chunk in column.chunks])
        if array.null_count:
            raise InputError(f"{self.path}: each image must hold its bytes, but {array.null_count} have none")
        _, offsets, data = array.buffers()
        starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        return starts, memoryview(data if data is not None else b"")

    def release(self) -> None:
        """Free the encoded images."""
        self._blobs = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images out: worker processes that do not share memory read the file again."""
        return {**self.__dict__, "_blobs": None}


class ParquetStore(EncodedStore):
    """The images of several Parquet files, one after another; all bytes of a file are read at the first access."""

    def __init__(self, files: list[_File], sizes: list[int]) -> None:
        """Take the files and the number of rows of each."""
        self._files = files
        self._ends = np.cumsum(sizes)

    def _locate(self, index: int) -> tuple[_File, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)

    def read_encoded(self, index: int) -> memoryview:
        """See EncodedStore."""
        file, row = self._locate(index)
        return file.blob(row)

    def origin(self, index: int) -> str:
        """See EncodedStore."""
        file, row = self._locate(index)
        return f"{file.path}, row {row}"

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore."""
        for file in self._files_of(indices):
            sha.update(f"{file.path.name}:{file.path.stat().st_size};".encode())

    def _files_of(self, indices: Indices) -> list[_File]:
        numbers = np.unique(np.searchsorted(self._ends, indices, side="right"))
        return [self._files[number] for number in numbers.tolist()]

    def preload(self, indices: Indices) -> None:
        """See ImageStore."""
        for file in self._files_of(indices):
            file.blob(0)

    def release(self) -> None:
        """See ImageStore."""
        for file in self._files:
            file.release()


def read_parquet(folder: Path, resize: Resize | None) -> ImageSource:
    """Read `train*.parquet`, and `validation*.parquet` and `test*.parquet` if there are any.

    Args:
        folder: where the files are, or a folder `data` with them.
        resize: how to resize; None where all images have one size.

    Returns:
        The set.

    Raises:
        InputError: a file is missing, damaged or laid out otherwise.
    """
    parts = [[_File(path) for path in paths] for paths in _find(folder)]
    files = [file for part in parts for file in part]
    labels = [[file.labels() for file in part] for part in parts]
    sizes = [[len(rows) for rows in part] for part in labels]
    ends = np.cumsum([0] + [sum(part) for part in sizes])
    training, validation, test = (np.arange(ends[i], ends[i + 1]) for i in range(len(_PARTS)))
    if not len(training):
        raise InputError(f"{files[0].path}: must have at least one row")
    all_labels = np.concatenate([rows for part in labels for rows in part])
    classes = _classes(files[0], all_labels, folder)
    store = ParquetStore(files, [rows for part in sizes for rows in part])
    store.infer_shape(training, resize)
    return ImageSource(
        classes=classes,
        labels=all_labels,
        store=store,
        training=training,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
    )


def _find(folder: Path) -> list[list[Path]]:
    """Return the files of each part, sorted by name."""
    if not folder.is_dir():
        raise InputError(f"data set 'parquet:{folder}': there is no such folder")
    for root in (folder, folder / "data"):
        parts = [sorted(root.glob(f"{part}*.parquet")) for part in _PARTS]
        if parts[0]:
            return parts
    names = sorted(path.name for path in folder.iterdir())[:5]
    raise InputError(
        f"data set 'parquet:{folder}': the folder, or `data` in it, must hold train*.parquet, "
        f"but it begins with: {', '.join(names) or 'nothing'}"
    )


def _classes(first: _File, labels: Labels, folder: Path) -> tuple[str, ...]:
    names = first.class_names() or tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"data set 'parquet:{folder}': labels must be from 0 to {len(names) - 1}, but got {wrong}")
    return names
