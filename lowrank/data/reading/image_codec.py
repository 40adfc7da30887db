"""Decodes one image; errors name the file that it comes from. Sizes are width x height in pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lowrank.errors import InputError
from lowrank.utils.text import one_line

Pixels = NDArray[np.uint8]

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


def decode_image(blob: bytes | memoryview, origin: str, shape: tuple[int, int, int], resize: bool) -> Pixels:
    """Decode one image.

    Args:
        blob: the encoded image.
        origin: the file of the image, for messages.
        shape: (C, H, W) of the result; C is 1 or 3.
        resize: whether to crop the middle and resize where the size differs.

    Returns:
        uint8 (H, W, C).

    Raises:
        InputError: the image is broken, or of another size while `resize` is off.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(blob)) as image:
            if image.size != (width, height) and not resize:
                size = image.size
            else:
                size = (width, height)
                pixels = np.asarray(_convert(image, channels, size))
    except _DECODE_ERRORS as error:
        raise _unreadable(origin, error) from error
    if size != (width, height):
        raise InputError(
            f"{origin}: all images must have the size of the first, {width}x{height}, but got {size[0]}x{size[1]}; "
            f"set `image_size` to resize them"
        )
    return pixels.reshape(height, width, channels)


def _convert(image: Image.Image, channels: int, size: tuple[int, int]) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"its mode is {image.mode}, not 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's transparency is dropped in the next step
    if image.mode != mode:
        image = image.convert(mode)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR)
