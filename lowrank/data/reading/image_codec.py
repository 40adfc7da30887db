"""One encoded image to pixels, with errors that name where the image comes from. Sizes are width x height in pixels."""

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
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def _broken(origin: str, error: BaseException) -> InputError:
    return InputError(f"{origin}: must be a readable image, but {one_line(error)}")


def read_header(blob: bytes | memoryview, origin: str) -> tuple[bool, tuple[int, int]]:
    """(whether the image is grey, (width, height)) without decoding it.

    Raises:
        InputError: the bytes are no image, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(blob)) as image:
            mode, size = image.mode, image.size
    except _BROKEN as error:
        raise _broken(origin, error) from error
    if mode not in _EIGHT_BIT_MODES:
        raise InputError(f"{origin}: images must have 8 bits a channel, but the mode is {mode}")
    return mode in GREY_MODES, size


def decode_image(blob: bytes | memoryview, origin: str, shape: tuple[int, int, int], resize: bool) -> Pixels:
    """Pixels of one image.

    Args:
        blob: the encoded image.
        origin: for messages.
        shape: (C, H, W) wanted; C is 1 or 3.
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
                pixels = np.asarray(_fitted(image, channels, size))
    except _BROKEN as error:
        raise _broken(origin, error) from error
    if size != (width, height):
        raise InputError(
            f"{origin}: all images must have the size of the first, {width}x{height}, but got {size[0]}x{size[1]}; "
            f"set `image_size` to resize them"
        )
    return pixels.reshape(height, width, channels)


def _fitted(image: Image.Image, channels: int, size: tuple[int, int]) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"its mode is {image.mode}, not 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the palette's transparency is dropped in the next step
    if image.mode != mode:
        image = image.convert(mode)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR)
