"""Images made of noise in place of a data set's: what a step costs is the same, and nothing is decoded for it."""

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
    """What of a data set the cost of a step depends on; `image_shape` is (C, H, W), `images` those of training."""

    settings: DataSettings
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    images: int

    @classmethod
    def of(cls, data: ImageData) -> DataOutline:
        """The outline of a data set."""
        return cls(
            settings=data.settings, classes=data.classes, image_shape=data.image_shape, mean=data.mean, std=data.std,
            fingerprint=data.fingerprint, images=len(data.train),
        )  # fmt: skip


@lru_cache(maxsize=1)
def synthetic_data(outline: DataOutline) -> ImageData:
    """A set of this outline, every split of which is the same noise; the last one made is kept."""
    channels, height, width = outline.image_shape
    generator = np.random.default_rng(SEED)
    pixels = generator.integers(0, 256, (outline.images, height, width, channels), np.uint8)
    every = torch.arange(outline.images)
    noise = Split(
        name="train", labels=every % len(outline.classes), indices=every, resident=True, store=ArrayStore(pixels)
    )
    return ImageData(
        name=outline.settings.name, settings=outline.settings, classes=outline.classes,
        image_shape=outline.image_shape, mean=outline.mean, std=outline.std, fingerprint=outline.fingerprint,
        train=noise, val=noise, test=noise,
    )  # fmt: skip
