"""Images of every kind give the pixels that a person sees."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from lowrank.data.reading.image_codec import (
    Conversion,
    ImageHeader,
    Resize,
    decode_image,
    image_suffixes,
    pillow_warnings_ignored,
    read_header,
)
from lowrank.errors import InputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(blob: bytes, channels: int = 3, resize: Resize | None = None) -> np.ndarray:
    header = read_header(io.BytesIO(blob), "x")
    side = (header.height, header.width) if resize is None else (resize.size, resize.size)
    return decode_image(blob, "x", (channels, *side), resize)


def corners() -> Image.Image:
    """3 x 2 pixels: red at the upper left, green at the upper right, blue at the lower left."""
    image = Image.new("RGB", (3, 2), "white")
    for place, colour in (((0, 0), RED), ((2, 0), GREEN), ((0, 1), BLUE)):
        image.putpixel(place, colour)
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    blob = encode(corners(), kind, exif=exif, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    stored = corners()
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    expected = ImageOps.exif_transpose(stored)
    header = read_header(io.BytesIO(blob), "x")
    assert (header.width, header.height) == expected.size == ((2, 3) if orientation > 4 else (3, 2))
    assert np.array_equal(decode(blob), np.asarray(expected))
    turned = orientation > 1 and kind != "TIFF"  # Pillow turns those itself
    assert header.conversions == (Conversion.TURNED if turned else Conversion(0))


def test_exif_orientation_of_a_photograph():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone held upright writes it: the right side of the file is up
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (0, 0, 16, 16))
    pixels = decode(encode(image, "JPEG", quality=95, exif=exif))
    assert pixels.shape == (32, 16, 3)
    assert pixels[:12, :, 2].min() > 240  # the left half of the file is the upper half of the picture
    assert pixels[20:, :, 0].min() > 240


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (*BLUE, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert decode(encode(image)).tolist() == [[[255, 255, 255], list(RED)]]
    assert decode(encode(half)).tolist() == [[[127] * 3]]
    assert read_header(io.BytesIO(encode(image)), "x").conversions == Conversion.ON_WHITE


def test_drawings_in_the_alpha_channel_differ():
    first, second = Image.new("LA", (2, 2), (0, 0)), Image.new("LA", (2, 2), (0, 0))
    first.putpixel((0, 0), (0, 255))
    second.putpixel((1, 1), (0, 255))
    assert decode(encode(first), 1)[..., 0].tolist() == [[0, 255], [255, 255]]
    assert decode(encode(second), 1)[..., 0].tolist() == [[255, 255], [255, 0]]


def test_a_palette_with_and_without_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *RED])
    image.putpixel((1, 0), 1)
    assert decode(encode(image)).tolist() == [[list(GREEN), list(RED)]]
    assert decode(encode(image, transparency=0)).tolist() == [[[255] * 3, list(RED)]]
    assert decode(encode(image, transparency=bytes([255, 0]))).tolist() == [[list(GREEN), [255] * 3]]
    assert decode(encode(image, "GIF", transparency=0)).tolist() == [[[255] * 3, list(RED)]]


def test_one_transparent_colour_of_rgb_and_grey():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    assert decode(encode(image, transparency=BLUE)).tolist() == [[list(RED), [255] * 3]]
    grey = Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 20)
    assert decode(encode(grey, transparency=10), 1)[..., 0].tolist() == [[255, 20]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(kind: str):
    deep = Image.fromarray(np.array([[0, 257, 40_000, 65_535]], np.uint16))
    blob = encode(deep, kind)
    assert decode(blob, 1)[..., 0].tolist() == [[0, 1, 156, 255]]
    assert decode(blob, 3).tolist() == [[[0] * 3, [1] * 3, [156] * 3, [255] * 3]]
    assert read_header(io.BytesIO(blob), "x") == ImageHeader(True, 4, 1, Conversion.FROM_16_BITS)


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = decode(encode(image, "JPEG", quality=100)).astype(int)
    assert np.abs(pixels - RED).max() < 8
    assert not read_header(io.BytesIO(encode(image, "JPEG")), "x").grey


def test_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decode(encode(image), 1)[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("I;16", True), ("P", False), ("RGB", False)]
)
def test_what_counts_as_grey(mode: str, grey: bool):
    assert read_header(io.BytesIO(encode(Image.new(mode, (4, 4)))), "x").grey == grey


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    blob = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(blob)[0, 0].tolist() == list(RED)


class TestResize:
    """An image that is wider than high becomes a square."""

    wide = Image.new("RGB", (6, 2), "white")
    wide.paste(RED, (0, 0, 2, 2))
    wide.paste(BLUE, (4, 0, 6, 2))

    def resized(self, mode: str, size: int = 6) -> np.ndarray:
        return decode(encode(self.wide), 3, Resize(size, interpolation="nearest", mode=mode))

    def test_crop_takes_the_middle(self):
        assert (self.resized("crop") == 255).all()

    def test_squash_keeps_all(self):
        assert self.resized("squash")[:, [0, 2, 5]].tolist() == [[list(RED), [255] * 3, list(BLUE)]] * 6

    def test_pad_adds_black_bars(self):
        pixels = self.resized("pad")
        assert not pixels[:2].any()
        assert not pixels[4:].any()
        assert pixels[2:4, [0, 2, 5]].tolist() == [[list(RED), [255] * 3, list(BLUE)]] * 2


def test_suffixes_are_all_that_can_be_decoded():
    suffixes = image_suffixes()
    assert suffixes > {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".bmp",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".tga",
    }
    assert not suffixes & {".pdf", ".txt", ".csv", ".mpg", ".h5", ".eps", ".ps", ".wmf"}


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "has no bytes"),
        (b"plain text", "its bytes are of no format that Pillow reads"),
        (
            encode(Image.effect_noise((64, 64), 50), "JPEG")[:-40],
            r"image file is truncated \(\d+ bytes not processed\)",
        ),
        (
            encode(Image.new("F", (64, 64)), "TIFF"),
            r"its values \(Pillow's mode F\) have no fixed range; save it with 8 or",
        ),
        (
            encode(Image.new("I", (64, 64)), "TIFF"),
            r"its values \(Pillow's mode I\) have no fixed range; save it with 8 or",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_without_addresses(blob: bytes, reason: str):
    with pytest.raises(InputError, match=f"^x: must be a readable image, but {reason}") as caught:
        decode_image(blob, "x", (3, 64, 64), None)
    assert "0x" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_size_is_refused():
    with pytest.raises(InputError, match=r"^x: images must be 4x4, for they are not resized, but this one is 3x2$"):
        decode_image(encode(corners()), "x", (3, 4, 4), None)


def test_warnings_of_pillow_are_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    blob = encode(corners())
    with pytest.raises(Image.DecompressionBombWarning):
        decode(blob)
    with pillow_warnings_ignored():
        assert decode(blob).shape == (2, 3, 3)
    with warnings.catch_warnings(), pytest.raises(Image.DecompressionBombWarning):
        decode(blob)
