"""Stores of images: decoded arrays in memory, or encoded images that are decoded on request.

A store numbers all published images by one global index: training files first, then validation, then test.
"""

from __future__ import annotations

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import IO, Any

import numpy as np

from lowrank.data.reading.disk_cache import load_or_make
from lowrank.data.reading.image_codec import (
    DECODER_VERSION,
    BrokenImageError,
    Pixels,
    Resize,
    decode_image,
    pillow_warnings_ignored,
)
from lowrank.data.reading.image_scan import ImageScan, broken_reason, count_images, scan_images, size_text
from lowrank.data.reading_progress import READING
from lowrank.data.splits import Indices
from lowrank.errors import InputError
from lowrank.utils import usable_cores

MIN_CACHED_BYTES = 20_000_000  # of decoded images; fewer are decoded faster than they are looked up
_GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue in units of 2**-16, as Pillow has them (ITU-R 601-2)
_IMAGES_PER_TASK = 256  # of one decoding thread
SMALL_IMAGE = 128 * 128  # pixels; below, decoding is mostly Python: more than two threads slow each other down

Decode = Callable[["ImageStore", Indices, int | None], Pixels]


class ImageStore(ABC):
    """All images of a data set by global index. `shape` is (C, H, W)."""

    shape: tuple[int, int, int]

    @property
    def preparations(self) -> int:
        """Changes when `preload` has prepared more; a process that was forked before lacks it."""
        return 0

    @abstractmethod
    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """Decode images.

        Args:
            indices: global indices, int64 (n,).
            threads: that decode, at most; None for as many as help.

        Returns:
            uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be read or has another size; the message names it.
        """

    def decode_shared(self, indices: Indices, decode: Decode, cores: int) -> Pixels:
        """Decode images that stay in memory; where that takes long, the processes of a machine share the result.

        Args:
            indices: global indices, int64 (n,).
            decode: decodes images of this store, where that takes long, on so many cores; None for all.
            cores: of this process, on which it decodes where others may do so at the same time.

        Returns:
            uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be read or has another size; the message names it.
        """
        return self.decode(indices, cores)

    @abstractmethod
    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """Add the contents of the images to the hash object `sha` without decoding them."""

    @abstractmethod
    def hash_files(self, indices: Indices, sha: Any) -> None:
        """Add the names and sizes of the images' files to the hash object `sha`, without reading them."""

    @abstractmethod
    def preload(self, indices: Indices) -> None:
        """Prepare reading the images in any order, by this process and others that are forked later."""

    @abstractmethod
    def release(self) -> None:
        """Free what can be read again."""


class ArrayStore(ImageStore):
    """Decoded images in memory."""

    def __init__(self, pixels: Pixels) -> None:
        """Hold `pixels`, uint8 (N, H, W, C)."""
        self._pixels = np.ascontiguousarray(pixels)
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)

    def with_channels(self, channels: int) -> ArrayStore:
        """Return the images with another number of channels.

        Args:
            channels: 1 or 3.

        Returns:
            A store of grey images, or of grey ones as RGB; this one where it has as many.
        """
        if channels == self.shape[0]:
            return self
        if channels == 3:
            return ArrayStore(np.repeat(self._pixels, 3, axis=3))
        grey = (self._pixels.astype(np.int64) @ np.array(_GREY_WEIGHTS) + 2**15) >> 16
        return ArrayStore(grey[..., None].astype(np.uint8))

    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """See ImageStore; copies the rows."""
        return self._pixels[indices]

    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the pixels."""
        sha.update(self._pixels[indices])

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the pixels, for an array has no files."""
        self.hash_contents(indices, sha)

    def preload(self, indices: Indices) -> None:
        """See ImageStore; everything is in memory."""

    def release(self) -> None:
        """See ImageStore; nothing can be read again."""


class EncodedStore(ImageStore):
    """Images as JPEG, PNG and the like; a subclass reads the bytes of each."""

    _resize: Resize | None

    @abstractmethod
    def read_encoded(self, index: int) -> bytes | memoryview:
        """Return the encoded image of a global index."""

    def open(self, index: int) -> IO[bytes]:
        """Open the encoded image of a global index; a subclass may leave most of it unread."""
        return io.BytesIO(self.read_encoded(index))

    @abstractmethod
    def origin(self, index: int) -> str:
        """Name the file of an image, for messages."""

    @abstractmethod
    def hash_locations(self, sha: Any) -> None:
        """Add where all images are, their sizes and their times of change to the hash object `sha`."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    def learn_shape(self, members: Indices, channels: int | None, resize: Resize | None, broken: int) -> ImageScan:
        """Set `shape` from the headers of images: the size that all have, and RGB if any has colours.

        Args:
            members: global indices of the images that are used, int64 (n,), n at least 1.
            channels: 1 or 3; None to decide.
            resize: how to resize; None where all images have one size.
            broken: so many of the images may be unreadable. They are then all decoded once.

        Returns:
            The headers of all images.

        Raises:
            InputError: images have several sizes and `resize` is None, or none can be read.
        """
        scan = scan_images(self, len(self), decode=broken > 0)
        readable = members[~scan.broken[members]]
        if len(readable) == 0:
            raise InputError(f"{broken_reason(self, int(members[0]))}; no other image can be read either")
        sizes = np.unique(scan.sizes[readable], axis=0)
        if resize is None and len(sizes) > 1:
            raise InputError(
                f"images must have one size, but {count_images(len(readable))} have {size_text(scan, readable)}; "
                f"set `data.image_size` (and `data.resize`: crop, squash or pad) to resize them"
            )
        width, height = sizes[0].tolist() if resize is None else (resize.size, resize.size)
        self.set_shape((channels or (1 if scan.grey[readable].all() else 3), height, width), resize)
        return scan

    def set_shape(self, shape: tuple[int, int, int], resize: Resize | None) -> None:
        """Set what images are decoded to.

        Args:
            shape: (C, H, W).
            resize: how to resize; None where all images have that size.
        """
        self.shape, self._resize = shape, resize

    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """See ImageStore."""
        channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), np.uint8)
        order = np.argsort(indices, kind="stable")  # neighbours are read together

        def fill(start: int) -> None:
            for row in order[start : start + _IMAGES_PER_TASK].tolist():
                index = int(indices[row])
                try:
                    pixels[row] = decode_image(self.read_encoded(index), self.origin(index), self.shape, self._resize)
                except BrokenImageError as error:  # only decoding shows that its end is missing
                    raise InputError(f"{error}; `data.skip_broken` leaves such images out") from error
                READING.step()

        starts = range(0, len(indices), _IMAGES_PER_TASK)
        most = usable_cores() if height * width >= SMALL_IMAGE else 2
        workers = min(threads or most, most, len(starts))
        with pillow_warnings_ignored():
            if workers <= 1:
                for start in starts:
                    fill(start)
                return pixels
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(fill, starts):
                    pass  # raises the first error
        return pixels

    def decode_shared(self, indices: Indices, decode: Decode, cores: int) -> Pixels:
        """See ImageStore and lowrank.data.reading.disk_cache."""
        if len(indices) * math.prod(self.shape) < MIN_CACHED_BYTES:
            return self.decode(indices, cores)
        sha = hashlib.sha256(f"{DECODER_VERSION} {version('pillow')} {self.shape} {self._resize}".encode())
        self.hash_contents(indices, sha)
        # Processes that wait for the images need no cores; those that decode them too have their own
        return load_or_make(sha, lambda: decode(self, indices, None), lambda: decode(self, indices, cores))

    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the encoded bytes, the shape that they are decoded to and how."""
        sha.update(repr(self.shape).encode())
        if self._resize is not None and self._resize[1:] != Resize(0)[1:]:
            fields = [f"{name}={value!r}" for name, value in zip(Resize._fields, self._resize, strict=True)]
            sha.update(f"Resize({', '.join(fields[:3] if self._resize.mode == 'crop' else fields)})".encode())
        for index in indices.tolist():
            blob = self.read_encoded(index)
            READING.step()
            sha.update(len(blob).to_bytes(8, "little"))
            sha.update(blob)
