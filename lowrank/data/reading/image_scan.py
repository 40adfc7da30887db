"""What the headers of all images of a set say: sizes, colours, broken files, and which pictures are equal.

N images. A scan of a large set is kept on disk, so one process of a machine makes it.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank.data.reading.disk_cache import load_or_make
from lowrank.data.reading.image_codec import DECODER_VERSION, Conversion, pillow_warnings_ignored, read_header
from lowrank.data.reading_progress import READING
from lowrank.data.splits import Indices
from lowrank.errors import InputError
from lowrank.utils import format_counted, usable_cores

MIN_CACHED_IMAGES = 2_000  # fewer are scanned faster than a file is written
_NAMED = 3  # images that a message names
_IMAGES_PER_TASK = 512
_RECORD = np.dtype(
    [("grey", "?"), ("width", "<i4"), ("height", "<i4"), ("conversions", "u1"), ("broken", "?"), ("bytes", "<i8"),
     ("content", "<u8")]
)  # fmt: skip
_SCAN_VERSION = 1


class EncodedImages(Protocol):
    """What a scan needs of a store: see `EncodedStore`."""

    def open(self, index: int) -> IO[bytes]:
        """Open an encoded image."""

    def read_encoded(self, index: int) -> bytes | memoryview:
        """Read an encoded image."""

    def origin(self, index: int) -> str:
        """Name the file of an image."""

    def hash_locations(self, sha: Any) -> None:
        """Hash where all images are, their sizes and times of change."""


@dataclass(frozen=True, eq=False)
class ImageScan:
    """The headers of a set's images.

    Attributes:
        grey: bool (N,), whether an image has no colours.
        sizes: int32 (N, 2), width and height of the upright image.
        conversions: uint8 (N,), see `Conversion`.
        broken: bool (N,), images that cannot be read; their other entries mean nothing.
        content: uint64 (N,), equal where two images have the same encoded bytes; 0 for one without an equal.
    """

    grey: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    conversions: NDArray[np.uint8]
    broken: NDArray[np.bool_]
    content: NDArray[np.uint64]


def scan_images(store: EncodedImages, count: int, *, decode: bool) -> ImageScan:
    """Read the headers of all images.

    Args:
        store: has the images.
        count: N.
        decode: decode each image too, which alone shows that its end is missing.

    Returns:
        The scan.
    """
    sha = hashlib.sha256(f"scan {_SCAN_VERSION} {DECODER_VERSION} {version('pillow')} {count} {decode}".encode())
    if count < MIN_CACHED_IMAGES:
        table = _scan(store, count, decode)
    else:
        store.hash_locations(sha)
        table = load_or_make(sha, lambda: _scan(store, count, decode))
    return ImageScan(
        grey=table["grey"],
        sizes=np.stack([table["width"], table["height"]], 1),
        conversions=table["conversions"],
        broken=table["broken"],
        content=table["content"],
    )


def _scan(store: EncodedImages, count: int, decode: bool) -> NDArray[Any]:
    table = np.zeros(count, _RECORD)

    def read(start: int) -> None:
        for index in range(start, min(start + _IMAGES_PER_TASK, count)):
            _scan_image(store, index, table, decode)

    def hash_contents(start: int) -> None:
        for index in range(start, min(start + _IMAGES_PER_TASK, count)):
            if candidates[index]:
                table["content"][index] = _content(store.read_encoded(index))
                READING.step()

    with pillow_warnings_ignored():
        _in_threads(read, count)
        candidates = ~table["broken"] & _have_equal(table[["bytes", "width", "height"]])
        _in_threads(hash_contents, count)
    table["content"][~_have_equal(table["content"])] = 0
    return table


def _scan_image(store: EncodedImages, index: int, table: NDArray[Any], decode: bool) -> None:
    """Fill one row of the table."""
    READING.step()
    try:
        with store.open(index) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            header = read_header(file, store.origin(index), decode=decode)
    except InputError:
        table["broken"][index] = True
        return
    table[index] = (header.grey, header.width, header.height, int(header.conversions), False, size, 0)


def broken_reason(store: EncodedImages, index: int) -> str:
    """Read a broken image again, for what is wrong with it.

    Args:
        store: has the image.
        index: its global index.

    Returns:
        A sentence that names it.
    """
    try:
        with store.open(index) as file, pillow_warnings_ignored():
            read_header(file, store.origin(index), decode=True)
    except InputError as error:
        return str(error)
    return f"{store.origin(index)}: could not be read before, and can be now"


def _content(blob: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), "little") or 1


def _have_equal(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which entries occur more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    several: NDArray[np.bool_] = counts[inverse] > 1
    return several


def _in_threads(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(min(2, usable_cores())) as pool:  # mostly Python: more would slow each other down
        for _ in pool.map(work, range(0, count, _IMAGES_PER_TASK)):
            pass  # raises the first error


def count_images(count: int) -> str:
    """Return a number of images in words.

    Args:
        count: the number.

    Returns:
        Such as `1 image` or `1,200 images`.
    """
    return format_counted(count, "image")


def size_text(scan: ImageScan, members: Indices) -> str:
    """Describe the sizes of images, the most frequent first.

    Args:
        scan: of the set.
        members: global indices of images, int64 (n,).

    Returns:
        Such as `2 sizes: 32x32 (40 images), 8x8 (1 image)`; of many sizes a few.
    """
    counts = Counter(map(tuple, scan.sizes[members].tolist())).most_common()
    shown = [f"{width}x{height} ({count_images(images)})" for (width, height), images in counts[:_NAMED]]
    more = [f"from {'x'.join(map(str, min(counts)[0]))} to {'x'.join(map(str, max(counts)[0]))}"]
    return f"{len(counts)} sizes: {', '.join(shown + (more if len(counts) > _NAMED else []))}"


def conversion_notes(scan: ImageScan, members: Indices) -> list[str]:
    """Say what decoding does to images beyond decoding them.

    Args:
        scan: of the set.
        members: global indices of images, int64 (n,).

    Returns:
        A sentence for each conversion that occurs.
    """
    texts = {
        Conversion.TURNED: "turned upright by EXIF data",
        Conversion.ON_WHITE: "laid on white because of transparent pixels",
        Conversion.FROM_16_BITS: "brought from 16 bits a channel to 8",
    }
    counts = {flag: int(np.count_nonzero(scan.conversions[members] & flag)) for flag in texts}
    return [
        f"{count_images(count)} {'is' if count == 1 else 'are'} {texts[flag]}"
        for flag, count in counts.items()
        if count
    ]
