"""The encoded images of Parquet files, read by row groups; nothing is held whole.

Reading in ascending order reads each row group once. A streamed set is read in random order, for which its encoded
images are copied once to a file on disk, which all processes of the machine map.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
import warnings
import zlib
from bisect import bisect_right
from collections import OrderedDict
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowrank.data.reading import disk_cache
from lowrank.data.reading.image_store import EncodedStore
from lowrank.data.reading_progress import READING
from lowrank.data.splits import Indices
from lowrank.errors import InputError
from lowrank.utils import atomic_write, format_bytes, one_line

HELD_BYTES = 64_000_000  # of row groups in memory; the last two are held whatever they take
_COPY_VERSION = 1
_INDEX = np.dtype([("start", "<i8"), ("bytes", "<i8"), ("checksum", "<u4")])


class _Group(NamedTuple):
    """The encoded images of one row group."""

    ends: Any  # int64 (rows + 1,), positions in `data`
    data: memoryview

    def blob(self, row: int) -> memoryview:
        return self.data[self.ends[row] : self.ends[row + 1]]


class ParquetImages:
    """The images of one file."""

    def __init__(self, path: Path, column: str) -> None:
        """Read the file's layout, not its images.

        Args:
            path: the file.
            column: holds the images.

        Raises:
            InputError: the file is damaged.
        """
        self.path, self.column = path, column
        try:
            with pq.ParquetFile(path) as file:
                rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
                self._column_bytes = _column_bytes(file.metadata, column)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.group_ends = list(accumulate(rows, initial=0))
        self._copy: _Copy | None = None

    def __len__(self) -> int:
        return self.group_ends[-1]

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.path}: must be a whole, readable Parquet file, but {one_line(error)}")

    def group_of(self, row: int) -> int:
        """Return the row group of a row."""
        return bisect_right(self.group_ends, row) - 1

    def read_group(self, group: int) -> _Group:
        """Read the images of a row group."""
        try:
            with pq.ParquetFile(self.path) as file:
                column = file.read_row_group(group, columns=[self.column]).column(self.column)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        READING.step()
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if pa.types.is_struct(array.type):
            array = array.flatten()[array.type.get_field_index("bytes")]
        wide = pa.types.is_large_binary(array.type)
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
        return _Group(ends.astype(np.int64), memoryview(data if data is not None else b""))

    @property
    def has_copy(self) -> bool:
        """Whether the copy on disk is mapped."""
        return self._copy is not None

    def copied(self, row: int) -> memoryview | None:
        """Return an image from the copy on disk; None where there is none, or it is damaged."""
        return None if self._copy is None else self._copy.blob(row)

    def make_copy(self) -> bool:
        """Copy the encoded images to disk, unless another process has; whether there is a copy."""
        if self._copy is not None:
            return True
        folder = disk_cache.cache_folder()
        if folder is None:
            return False
        status = self.path.stat()
        key = f"{_COPY_VERSION} {self.path.resolve()} {status.st_size} {status.st_mtime_ns} {self.column}"
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.images"
        self._copy = _open_copy(path, len(self))
        if self._copy is None:
            with disk_cache.making(folder, path.name):
                self._copy = _open_copy(path, len(self))
                if self._copy is None and disk_cache.make_room(folder, self._column_bytes):
                    with suppress(OSError):  # the disk is full after all: images are read from the file
                        self._write_copy(path)
                    self._copy = _open_copy(path, len(self))
        return self._copy is not None

    def _write_copy(self, path: Path) -> None:
        index, position, row = np.zeros(len(self), _INDEX), 0, 0
        with atomic_write(path) as file:
            for group in range(len(self.group_ends) - 1):
                images = self.read_group(group)
                for number in range(len(images.ends) - 1):
                    blob = images.blob(number)
                    file.write(blob)
                    index[row] = position, len(blob), zlib.crc32(blob)
                    position, row = position + len(blob), row + 1
            content = index.tobytes()
            file.write(content)
            file.write(zlib.crc32(content).to_bytes(4, "little"))

    def __getstate__(self) -> dict[str, object]:
        """Leave the mapping out: a process that does not share memory maps the copy again."""
        return {**self.__dict__, "_copy": None}


def _column_bytes(metadata: Any, name: str) -> int:
    """The bytes that a column takes when it is read, all row groups together."""
    return sum(
        metadata.row_group(group).column(number).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for number in range(metadata.num_columns)
        if metadata.row_group(group).column(number).path_in_schema.split(".")[0] == name
    )


class _Copy:
    """A file of encoded images, mapped into memory. Each image has a checksum."""

    def __init__(self, content: mmap.mmap, index: Any) -> None:
        self._content, self._index = memoryview(content), index

    def blob(self, row: int) -> memoryview | None:
        """Return an image; None where the file is damaged at its place."""
        start, size, checksum = self._index[row].item()
        blob = self._content[start : start + size]
        return blob if zlib.crc32(blob) == checksum else None


def _open_copy(path: Path, rows: int) -> _Copy | None:
    """Map a copy; None where it is missing, or its list of images is damaged."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    start = len(content) - 4 - rows * _INDEX.itemsize
    listing = content[start:-4] if start >= 0 else b""
    if zlib.crc32(listing).to_bytes(4, "little") != content[-4:]:
        return None
    with suppress(OSError, AttributeError):
        content.madvise(mmap.MADV_RANDOM)
    disk_cache.mark_used(path)
    return _Copy(content, np.frombuffer(listing, _INDEX))


class ParquetStore(EncodedStore):
    """The images of several Parquet files, one after another."""

    def __init__(self, files: list[ParquetImages], order: Indices | None = None) -> None:
        """Take the files.

        Args:
            files: in the order of the parts.
            order: of each image, its row in all files together, int64 (N,); None for all rows as they come.
        """
        self._files, self._order = files, order
        # Not arrays: numpy lets other threads run while it searches, and then waits for them, at every image
        self._ends = list(accumulate(len(file) for file in files))
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._lock = threading.Lock()
        self._warned = False

    def __len__(self) -> int:
        return self._ends[-1] if self._order is None else len(self._order)

    def _locate(self, index: int) -> tuple[int, int]:
        index = index if self._order is None else int(self._order[index])
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def read_encoded(self, index: int) -> memoryview:
        """See EncodedStore."""
        number, row = self._locate(index)
        file = self._files[number]
        if (blob := file.copied(row)) is not None:
            return blob
        group = file.group_of(row)
        return self._group(number, group).blob(row - file.group_ends[group])

    def _group(self, number: int, group: int) -> _Group:
        with self._lock:
            key = (number, group)
            if key not in self._groups:
                self._groups[key] = self._files[number].read_group(group)
                while len(self._groups) > 2 and sum(len(held.data) for held in self._groups.values()) > HELD_BYTES:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

    def origin(self, index: int) -> str:
        """See EncodedStore."""
        number, row = self._locate(index)
        return f"{self._files[number].path}, row {row}"

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore."""
        for file in self._files_of(indices):
            sha.update(f"{file.path.name}:{file.path.stat().st_size};".encode())

    def hash_locations(self, sha: Any) -> None:
        """See EncodedStore."""
        for file in self._files:
            status = file.path.stat()
            sha.update(f"{file.path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{file.column};".encode())
        if self._order is not None:
            sha.update(self._order.data)

    def _files_of(self, indices: Indices) -> list[ParquetImages]:
        rows = indices if self._order is None else self._order[indices]
        numbers = np.unique(np.searchsorted(self._ends, rows, side="right"))
        return [self._files[number] for number in numbers.tolist()]

    def preload(self, indices: Indices) -> None:
        """See ImageStore: copies the encoded images to disk, where they can be read in any order."""
        copied = [file.make_copy() for file in self._files_of(indices)]
        if not all(copied) and not self._warned:
            self._warned = True
            size = format_bytes(sum(file.path.stat().st_size for file in self._files))
            folder = disk_cache.cache_folder() or "the folder of temporary files"
            warnings.warn(
                f"the images of {self._files[0].path.parent} are read by row groups, which is slow in random order, "
                f"because {folder} has no room for a copy ({size}); name a folder that has by the variable "
                f"{disk_cache.CACHE_VARIABLE}",
                stacklevel=2,
            )

    @property
    def preparations(self) -> int:
        """See ImageStore."""
        return sum(file.has_copy for file in self._files)

    def release(self) -> None:
        """See ImageStore."""
        self._groups.clear()
        pa.default_memory_pool().release_unused()

    def __getstate__(self) -> dict[str, object]:
        """Leave out what another process reads itself."""
        return {**self.__dict__, "_groups": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Make a lock of this process."""
        self.__dict__.update(state)
        self._lock = threading.Lock()
