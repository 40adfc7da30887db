"""One slot of a teacher cache: what a teacher says about one view of every training image, as one Arrow file.

Letters: N training images, K classes, h x w positions of a map. A slot is written under another name and moved into
place, so that it is whole or not there, and carries a checksum of its contents. It is read through a memory map: all
processes of a host share the pages.
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
from lowrank.utils.atomic_write import atomic_path
from lowrank.utils.text import first_line

Array = NDArray[Any]
CHECKSUM = b"sha256"  # in the file's metadata

_VERIFIED: dict[Path, tuple[int, int, int]] = {}  # files that this process has verified: inode, size, time


class DamagedSlotError(LowrankError):
    """A slot's file is not what was written."""


@dataclass(frozen=True)
class Layout:
    """What a slot holds of N images: K logits (float32), and a map (float16, of length 1) of each of these sizes."""

    images: int
    classes: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Of one slot, less a few hundred bytes of headers."""
        return self.images * (4 * self.classes + 2 * sum(height * width for height, width in self.sizes))

    def columns(self) -> list[tuple[tuple[int, int], type]]:
        """Shape and dtype of each array: logits (N, K), then a map (N, h * w) of each size."""
        maps = [((self.images, height * width), np.float16) for height, width in self.sizes]
        return [((self.images, self.classes), np.float32), *maps]

    def empty(self) -> list[Array]:
        """Arrays to fill."""
        return [np.zeros(shape, dtype) for shape, dtype in self.columns()]


def write_slot(path: Path, arrays: Sequence[Array]) -> None:
    """Write the arrays of `Layout.empty`, synced and atomically; raises OSError, and then leaves nothing."""
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), each.shape[1]) for each in arrays]
    fields = [pa.field(_name(place), column.type) for place, column in enumerate(columns)]
    schema = pa.schema(fields, metadata={CHECKSUM: _checksum(arrays)})
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(pa.record_batch(columns, schema=schema))


def read_slot(path: Path, layout: Layout) -> list[Array]:
    """The arrays of a slot, read-only views of the memory map; its contents are verified once in each process.

    Raises:
        DamagedSlotError: the file is no slot of this layout, or its contents have changed.
        OSError: it is not there.
    """
    about = path.stat()
    state = (about.st_ino, about.st_size, about.st_mtime_ns)
    try:
        arrays, checksum = _mapped(path, layout)
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowTypeError, ValueError, OSError) as error:
        raise DamagedSlotError(f"{path} is damaged: {first_line(error)}") from error
    if _VERIFIED.get(path) != state:
        if _checksum(arrays) != checksum:
            raise DamagedSlotError(f"{path} is damaged: its contents do not have their checksum")
        _VERIFIED[path] = state
    return arrays


def _mapped(path: Path, layout: Layout) -> tuple[list[Array], bytes]:
    """The arrays as the file has them, and the checksum that it carries; raises ValueError for another layout."""
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


def _name(place: int) -> str:
    return "logits" if place == 0 else f"map_{place}"


def _checksum(arrays: Sequence[Array]) -> bytes:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest().encode()
