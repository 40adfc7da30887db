"""Stores of images: decoded arrays in memory, or encoded images that are decoded on request.

A store numbers all published images by one global index: training files first, then validation, then test.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lowrank.data.reading.decoded_cache import MIN_BYTES, load_or_decode
from lowrank.data.reading.image_codec import Pixels, Resize, decode_image, read_header
from lowrank.data.splits import Indices
from lowrank.utils import usable_cores

_SAMPLED_HEADERS = 64  # read to see whether a set has colours
_IMAGES_PER_TASK = 256  # of one decoding thread
_SMALL_IMAGE = 128 * 128  # pixels; below, decoding is mostly Python: more than two threads slow each other down


class ImageStore(ABC):
    """All images of a data set by global index. `shape` is (C, H, W)."""

    shape: tuple[int, int, int]

    @abstractmethod
    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """Decode images.

        Args:
            indices: global indices, int64 (n,).
            threads: that decode; None for as many as help.

        Returns:
            uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be read or has another size; the message names it.
        """

    def decode_shared(self, indices: Indices) -> Pixels:
        """Decode images that stay in memory; where that takes long, the processes of a machine share the result.

        Args:
            indices: global indices, int64 (n,).

        Returns:
            uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be read or has another size; the message names it.
        """
        return self.decode(indices)

    @abstractmethod
    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """Add the contents of the images to the hash object `sha` without decoding them."""

    @abstractmethod
    def hash_files(self, indices: Indices, sha: Any) -> None:
        """Add the names and sizes of the images' files to the hash object `sha`, without reading them."""

    @abstractmethod
    def preload(self, indices: Indices) -> None:
        """Read the encoded images into memory, so that worker processes which are forked later share them."""

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

    @abstractmethod
    def origin(self, index: int) -> str:
        """Name the file of an image, for messages."""

    def infer_shape(self, training: Indices, resize: Resize | None) -> None:
        """Set `shape` from the headers of some training images; the first gives the size, any colour makes it RGB.

        Args:
            training: global indices, int64 (n,), n at least 1.
            resize: how to resize; None where all images have one size.
        """
        sample = training[np.unique(np.linspace(0, len(training) - 1, _SAMPLED_HEADERS).astype(np.int64))]
        headers = [read_header(self.read_encoded(index), self.origin(index)) for index in sample.tolist()]
        width, height = headers[0][1] if resize is None else (resize.size, resize.size)
        self.shape = (1 if all(grey for grey, _ in headers) else 3, height, width)
        self._resize = resize

    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """See ImageStore."""
        channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), np.uint8)

        def fill(start: int) -> None:
            for row in range(start, min(start + _IMAGES_PER_TASK, len(indices))):
                index = int(indices[row])
                pixels[row] = decode_image(self.read_encoded(index), self.origin(index), self.shape, self._resize)

        starts = range(0, len(indices), _IMAGES_PER_TASK)
        workers = min(threads or (usable_cores() if height * width >= _SMALL_IMAGE else 2), len(starts))
        if workers <= 1:
            for start in starts:
                fill(start)
            return pixels
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(fill, starts):
                pass  # raises the first error
        return pixels

    def decode_shared(self, indices: Indices) -> Pixels:
        """See ImageStore and lowrank.data.reading.decoded_cache."""
        if len(indices) * math.prod(self.shape) < MIN_BYTES:
            return self.decode(indices)
        sha = hashlib.sha256()
        self.hash_contents(indices, sha)
        return load_or_decode(sha, lambda: self.decode(indices))

    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the encoded bytes, the shape that they are decoded to and how."""
        sha.update(repr(self.shape).encode())
        if self._resize is not None and self._resize[1:] != Resize(0)[1:]:
            sha.update(repr(self._resize).encode())
        for index in indices.tolist():
            blob = self.read_encoded(index)
            sha.update(len(blob).to_bytes(8, "little"))
            sha.update(blob)
