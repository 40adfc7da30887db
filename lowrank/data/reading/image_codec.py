"""Decodes one image; errors name the file that it comes from. Sizes are width x height in pixels."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lowrank.data.settings import Interpolation
from lowrank.errors import InputError
from lowrank.utils import one_line

Pixels = NDArray[np.uint8]


class Resize(NamedTuple):
    """How images become squares of one size: the middle square of each is resized.

    Attributes:
        size: side of the result, in pixels.
        crop: side of the middle square as a share of the image's shorter side.
        interpolation: filter of the resizing.
    """

    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"


GREY_MODES = ("1", "L", "LA")
_EIGHT_BIT_MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def _unreadable(origin: str, error: BaseException) -> InputError:
    return InputError(f"{origin}: must be a readable image, but {one_line(error)}")


def read_header(blob: bytes | memoryview, origin: str) -> tuple[bool, tuple[int, int]]:
    """Read colour and size of an image without decoding it.

    Args:
        blob: the encoded image.
        origin: the file of the image, for messages.

    Returns:
        Whether it is grey, and (width, height).

    Raises:
        InputError: the bytes are no image, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(blob)) as image:
            mode, size = image.mode, image.size
    except _DECODE_ERRORS as error:
        raise _unreadable(origin, error) from error
    if mode not in _EIGHT_BIT_MODES:
        raise InputError(f"{origin}: images must have 8 bits a channel, but the mode is {mode}")
    return mode in GREY_MODES, size


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
        with Image.open(io.BytesIO(blob)) as image:
            if image.size != (width, height) and resize is None:
                size = image.size
            else:
                size = (width, height)
                pixels = np.asarray(_convert(image, channels, size, resize))
    except _DECODE_ERRORS as error:
        raise _unreadable(origin, error) from error
    if size != (width, height):
        raise InputError(
            f"{origin}: all images must have the size of the first, {width}x{height}, but got {size[0]}x{size[1]}; "
            f"set `image_size` to resize them"
        )
    return pixels.reshape(height, width, channels)


def _convert(image: Image.Image, channels: int, size: tuple[int, int], resize: Resize | None) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"its mode is {image.mode}, not 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's transparency is dropped in the next step
    if image.mode != mode:
        image = image.convert(mode)
    if resize is None or (image.size == size and resize.crop == 1):
        return image
    border = (1 - resize.crop) / 2  # cut from each side, as a share of the image
    return ImageOps.fit(image, size, Image.Resampling[resize.interpolation.upper()], border)
