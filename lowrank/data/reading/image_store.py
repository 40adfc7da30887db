"""Where the images of a data set are kept.

A store holds every published image under one global index (training files first, then validation, then test) and
decodes any of them on request.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lowrank.data.reading.decoded_cache import LEAST_BYTES, shared
from lowrank.data.reading.image_codec import Pixels, decode_image, read_header
from lowrank.data.splits import Indices
from lowrank.utils.cpu import usable_cores

_PROBES = 64  # headers read to see whether a set has colours
_IMAGES_A_TASK = 256  # of one decoding thread
_SMALL = 128 * 128  # pixels; decoding smaller images is mostly Python, where more than two threads slow each other down


class ImageStore(ABC):
    """All images of a data set by global index. `shape` is (C, H, W)."""

    shape: tuple[int, int, int]

    @abstractmethod
    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """Uint8 (n, H, W, C) of the images `indices` (int64 (n,)); `threads` None: as many as pay.

        Raises:
            InputError: an image cannot be read or has another size; names it.
        """

    def decode_whole(self, indices: Indices) -> Pixels:
        """`decode` for images that stay in memory; where decoding takes long, the processes of a machine share it."""
        return self.decode(indices)

    @abstractmethod
    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """Add the contents of the images to the hash object `sha` without decoding them."""

    @abstractmethod
    def hash_files(self, indices: Indices, sha: Any) -> None:
        """Add names and sizes of the files that hold the images to `sha`, without reading them."""

    @abstractmethod
    def hold(self, indices: Indices) -> None:
        """Read into memory what worker processes will need of these images, so that they share it."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what can be read again."""


class ArrayStore(ImageStore):
    """Decoded images in memory."""

    def __init__(self, pixels: Pixels) -> None:
        """From uint8 (N, H, W, C)."""
        self._pixels = np.ascontiguousarray(pixels)
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)

    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """See ImageStore; a copy of the rows."""
        return self._pixels[indices]

    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the pixels."""
        sha.update(self._pixels[indices])

    def hash_files(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; an array has no files, its pixels stand for them."""
        self.hash_contents(indices, sha)

    def hold(self, indices: Indices) -> None:
        """See ImageStore; all is in memory."""

    def release(self) -> None:
        """See ImageStore; nothing can be read again."""


class EncodedStore(ImageStore):
    """Images as JPEG, PNG and the like; a subclass says where the bytes of each are."""

    _resize: bool

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """The encoded image of a global index."""

    @abstractmethod
    def origin(self, index: int) -> str:
        """Where the image comes from, for messages."""

    def learn_shape(self, training: Indices, image_size: int | None) -> None:
        """Set `shape` from the headers of a few training images; the first sets the size, any colour makes it RGB.

        Args:
            training: global indices, int64 (n,), n at least 1.
            image_size: side in pixels to resize to, or None where all images have one size.
        """
        probes = training[np.unique(np.linspace(0, len(training) - 1, _PROBES).astype(np.int64))]
        headers = [read_header(self.encoded(index), self.origin(index)) for index in probes.tolist()]
        width, height = headers[0][1] if image_size is None else (image_size, image_size)
        self.shape = (1 if all(grey for grey, _ in headers) else 3, height, width)
        self._resize = image_size is not None

    def decode(self, indices: Indices, threads: int | None = None) -> Pixels:
        """See ImageStore."""
        channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), np.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _IMAGES_A_TASK, len(indices))):
                index = int(indices[place])
                pixels[place] = decode_image(self.encoded(index), self.origin(index), self.shape, self._resize)

        starts = range(0, len(indices), _IMAGES_A_TASK)
        workers = min(threads or (usable_cores() if height * width >= _SMALL else 2), len(starts))
        if workers <= 1:
            for start in starts:
                fill(start)
            return pixels
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(fill, starts):
                pass  # raises the first error
        return pixels

    def decode_whole(self, indices: Indices) -> Pixels:
        """See ImageStore and lowrank.data.reading.decoded_cache."""
        if len(indices) * math.prod(self.shape) < LEAST_BYTES:
            return self.decode(indices)
        sha = hashlib.sha256()
        self.hash_contents(indices, sha)
        return shared(sha, lambda: self.decode(indices))

    def hash_contents(self, indices: Indices, sha: Any) -> None:
        """See ImageStore; hashes the encoded bytes and the shape that they are decoded to."""
        sha.update(repr(self.shape).encode())
        for index in indices.tolist():
            blob = self.encoded(index)
            sha.update(len(blob).to_bytes(8, "little"))
            sha.update(blob)
