"""One file of a teacher cache: the teacher's outputs on every training image in one cache epoch, in Arrow's format.

Letters: N training images, K classes, h x w positions of a map. A file is written under a temporary name and renamed,
so that it is complete or missing, and carries a checksum of its contents. It is read through a memory map, so that all
processes of a host share its pages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lowrank.errors import LowrankError
from lowrank.utils import atomic_path, first_line

Array = NDArray[Any]
CHECKSUM = b"sha256"  # in the file's metadata

_VERIFIED: dict[Path, tuple[int, int, int]] = {}  # files that this process has verified: inode, size, time


class DamagedCacheError(LowrankError):
    """The contents of a cache file are not what was written."""


@dataclass(frozen=True)
class Layout:
    """What a cache file holds.

    For each of `images` images: `classes` logits (float32), and for each (height, width) in `sizes` one attention map
    (float16, of length 1).
    """

    images: int
    classes: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Size of one file, without a few hundred bytes of headers."""
        return self.images * (4 * self.classes + 2 * sum(height * width for height, width in self.sizes))

    def columns(self) -> list[tuple[tuple[int, int], type]]:
        """Return shape and dtype of each array: logits (N, K), then a map (N, h * w) of each size."""
        maps = [((self.images, height * width), np.float16) for height, width in self.sizes]
        return [((self.images, self.classes), np.float32), *maps]

    def empty(self) -> list[Array]:
        """Return arrays of zeros to fill, in the order of `columns`."""
        return [np.zeros(shape, dtype) for shape, dtype in self.columns()]


def write_cache_file(path: Path, arrays: Sequence[Array]) -> None:
    """Write the arrays of one cache epoch, synced and atomically.

    Args:
        path: the file; it appears complete or not at all.
        arrays: as `Layout.empty` gives them.

    Raises:
        OSError: the file cannot be written.
    """
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1]) for array in arrays]
    fields = [pa.field(_column_name(index), column.type) for index, column in enumerate(columns)]
    schema = pa.schema(fields, metadata={CHECKSUM: _checksum(arrays)})
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(pa.record_batch(columns, schema=schema))


def read_cache_file(path: Path, layout: Layout) -> list[Array]:
    """Read the arrays of one cache epoch; each process verifies a file's checksum once.

    Args:
        path: the file.
        layout: what it must hold.

    Returns:
        The arrays in the order of `Layout.columns`, as read-only views of the memory map.

    Raises:
        DamagedCacheError: the file has another layout, or its contents have changed.
        OSError: there is no such file.
    """
    status = path.stat()
    state = (status.st_ino, status.st_size, status.st_mtime_ns)
    try:
        arrays, checksum = _map_file(path, layout)
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowTypeError, ValueError, OSError) as error:
        raise DamagedCacheError(f"{path} is damaged: {first_line(error)}") from error
    if _VERIFIED.get(path) != state:
        if _checksum(arrays) != checksum:
            raise DamagedCacheError(f"{path} is damaged: its contents do not have their checksum")
        _VERIFIED[path] = state
    return arrays


def _map_file(path: Path, layout: Layout) -> tuple[list[Array], bytes]:
    """Map a file: its arrays, and the checksum that it carries; raises ValueError for another layout."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.num_record_batches != 1:
        raise ValueError(f"it holds {reader.num_record_batches} batches, not 1")
    batch = reader.get_batch(0)
    arrays: list[Array] = []
    expected = layout.columns()
    if batch.num_columns != len(expected):
        raise ValueError(f"it holds {batch.num_columns} columns, not {len(expected)}")
    for column, (shape, dtype) in zip(batch.columns, expected, strict=True):
        values = column.flatten().to_numpy(zero_copy_only=True)
        if values.dtype != dtype or values.size != shape[0] * shape[1]:
            raise ValueError(f"a column holds {values.size} numbers of {values.dtype}, not {shape} of {dtype}")
        arrays.append(values.reshape(shape))
    return arrays, (reader.schema.metadata or {}).get(CHECKSUM, b"")


def _column_name(index: int) -> str:
    return "logits" if index == 0 else f"map_{index}"


def _checksum(arrays: Sequence[Array]) -> bytes:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest().encode()
