"""Decodes one image; errors name the file that it comes from. Sizes are width x height in pixels.

An image is turned upright as its EXIF data say, laid on white where it is transparent, and brought to 8 bits a channel.
Of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from functools import lru_cache
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lowrank.data.settings import Interpolation, ResizeMode
from lowrank.errors import InputError
from lowrank.utils import one_line

Pixels = NDArray[np.uint8]

DECODER_VERSION = 2
"""Raise it with every change that gives other pixels: decoded images are kept on disk under it."""


class Resize(NamedTuple):
    """How images become squares of one size.

    Attributes:
        size: side of the result, in pixels.
        crop: side of the middle square as a share of the image's shorter side, for the mode `crop`.
        interpolation: filter of the resizing.
        mode: `crop` takes the middle square, `squash` changes the proportions, `pad` adds black bars.
    """

    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    mode: ResizeMode = "crop"


class Conversion(IntFlag):
    """What is done to an image beyond decoding; each was done otherwise, or not at all, by version 1 of the decoder."""

    TURNED = 1  # upright, as its EXIF data say
    ON_WHITE = 2  # it has transparent pixels
    FROM_16_BITS = 4


class ImageHeader(NamedTuple):
    """What is known of an image without decoding it.

    Attributes:
        grey: whether it has no colours.
        width: of the upright image, in pixels.
        height: likewise.
        conversions: what decoding will do to it.
    """

    grey: bool
    width: int
    height: int
    conversions: Conversion


_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, Image.DecompressionBombError)
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_FIRST_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # tried first, for most images are of these
_UNUSABLE_FORMATS = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "PCD", "SPIDER", "WMF", "XVTHUMB")
"""Formats that Pillow only recognises, needs another program for, or takes much that is no image for."""


@lru_cache(maxsize=1)
def _readable_formats() -> tuple[str, ...]:
    Image.init()  # imports all of Pillow's plugins
    others = sorted(set(Image.OPEN) - {*_FIRST_FORMATS, *_UNUSABLE_FORMATS})
    return (*(name for name in _FIRST_FORMATS if name in Image.OPEN), *others)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of image files that can be read.

    Returns:
        In lower case, each with its dot.
    """
    formats = _readable_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Keep Pillow's warnings, which name no file, off the screen.

    Not for use within threads.

    Yields:
        None.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


class BrokenImageError(InputError):
    """An image cannot be decoded."""


def _unreadable(origin: str, error: BaseException, size: int) -> BrokenImageError:
    if size == 0:
        return BrokenImageError(f"{origin}: must be a readable image, but has no bytes")
    if isinstance(error, UnidentifiedImageError):  # Pillow's own text has the address of an object
        return BrokenImageError(f"{origin}: must be a readable image, but its bytes are of no format that Pillow reads")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return BrokenImageError(f"{origin}: must have at most {limit:,} pixels, for Pillow opens no larger image")
    return BrokenImageError(f"{origin}: must be a readable image, but {one_line(error) or type(error).__name__}")


def read_header(file: IO[bytes], origin: str, *, decode: bool = False) -> ImageHeader:
    """Read colour and size of an image.

    Args:
        file: the encoded image.
        origin: the file of the image, for messages.
        decode: decode it too, to see whether it is whole.

    Returns:
        The header.

    Raises:
        InputError: the bytes are no image, or its values have no fixed range.
    """
    try:
        with Image.open(file, formats=_readable_formats()) as image:
            _check_mode(image)
            width, height = image.size
            conversions = Conversion(0)
            orientation = _orientation(image)
            if image.has_transparency_data:
                conversions |= Conversion.ON_WHITE
            if image.mode in _DEEP_MODES:
                conversions |= Conversion.FROM_16_BITS
            grey = image.mode in _GREY_MODES
            if decode:
                image.load()
    except _DECODE_ERRORS as error:
        raise _unreadable(origin, error, file.seek(0, io.SEEK_END)) from error
    if orientation != 1:
        conversions |= Conversion.TURNED
    if orientation in _SIDEWAYS:
        width, height = height, width
    return ImageHeader(grey, width, height, conversions)


def _check_mode(image: Image.Image) -> None:
    if image.mode in _EIGHT_BIT_MODES or (image.mode in _DEEP_MODES and (image.mode != "I" or image.format == "PPM")):
        return
    raise ValueError(
        f"its values (Pillow's mode {image.mode}) have no fixed range; save it with 8 or 16 bits a channel"
    )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright."""
    if "exif" not in image.info:  # Pillow turns TIFF files itself
        return 1
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def decode_image(blob: bytes | memoryview, origin: str, shape: tuple[int, int, int], resize: Resize | None) -> Pixels:
    """Decode one image.

    Args:
        blob: the encoded image.
        origin: the file of the image, for messages.
        shape: (C, H, W) of the result; C is 1 or 3.
        resize: how to resize; None where all images must have the size of `shape`.

    Returns:
        uint8 (H, W, C).

    Raises:
        InputError: the image is broken, or of another size while `resize` is None.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(blob), formats=_readable_formats()) as image:
            upright = _upright(image)
            size = upright.size
            if resize is not None or size == (width, height):
                converted = _convert(upright, image.format, channels)
                pixels = np.asarray(_resize(converted, (width, height), resize))
    except _DECODE_ERRORS as error:
        raise _unreadable(origin, error, len(blob)) from error
    if resize is None and size != (width, height):
        raise InputError(
            f"{origin}: images must be {width}x{height}, for they are not resized, but this one is {size[0]}x{size[1]}"
        )
    return pixels.reshape(height, width, channels)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # PNG files may have their EXIF data at the end
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _convert(image: Image.Image, image_format: str | None, channels: int) -> Image.Image:
    """Convert an image to 8 bits and to grey or RGB."""
    image.format = image_format
    _check_mode(image)
    if image.mode in _DEEP_MODES:
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int], resize: Resize | None) -> Image.Image:
    if resize is None or (image.size == size and resize.crop == 1):
        return image
    interpolation = Image.Resampling[resize.interpolation.upper()]
    if resize.mode == "squash":
        return image.resize(size, interpolation)
    if resize.mode == "pad":
        return ImageOps.pad(image, size, interpolation, color=0)
    border = (1 - resize.crop) / 2  # cut from each side, as a share of the image
    return ImageOps.fit(image, size, interpolation, border)
