"""A data set of noise with the shape of a real one: a step costs the same, and nothing has to be decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lowrank.data.dataset import ImageData, Split
from lowrank.data.reading.image_store import ArrayStore
from lowrank.data.settings import DataSettings

SEED = 0


@dataclass(frozen=True, kw_only=True)
class DataOutline:
    """The properties of a data set that the cost of a step depends on.

    Attributes:
        settings: of the data set.
        classes: names of the classes.
        image_shape: (C, H, W).
        mean: of each channel, in units of 0..1.
        std: likewise the deviation.
        fingerprint: of the data set.
        images: number of images in the training split.
    """

    settings: DataSettings
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    images: int

    @classmethod
    def of(cls, data: ImageData) -> DataOutline:
        """Take the outline of a data set.

        Args:
            data: a loaded set.

        Returns:
            Its outline, which can be pickled.
        """
        return cls(
            settings=data.settings, classes=data.classes, image_shape=data.image_shape, mean=data.mean, std=data.std,
            fingerprint=data.fingerprint, images=len(data.train),
        )  # fmt: skip


@lru_cache(maxsize=1)
def synthetic_data(outline: DataOutline) -> ImageData:
    """Make a data set of noise; all its splits are the same. The last one is cached.

    Args:
        outline: of the real set.

    Returns:
        A resident set with that outline.
    """
    channels, height, width = outline.image_shape
    generator = np.random.default_rng(SEED)
    pixels = generator.integers(0, 256, (outline.images, height, width, channels), np.uint8)
    indices = torch.arange(outline.images)
    noise = Split(
        name="train", labels=indices % len(outline.classes), indices=indices, resident=True, store=ArrayStore(pixels)
    )
    return ImageData(
        name=outline.settings.name, settings=outline.settings, classes=outline.classes,
        image_shape=outline.image_shape, mean=outline.mean, std=outline.std, fingerprint=outline.fingerprint,
        train=noise, val=noise, test=noise,
    )  # fmt: skip
