"""A trained classifier as a folder of plain data, ready for use on images as they come.

    model.safetensors   the tensors, and the settings that describe the network (see `lowrank.io.model_file`)
    images.json         mean and deviation of each channel, the names of the classes, one example image

MLflow's `python_function` flavour calls `_load_pyfunc`. The module keeps its path, because stored MLflow models name
it. Reading either file runs no code from it.

Letters: B images, (C, H, W) the shape of one, K classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from lowrank.compression import SizedMethod
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io import load_model, save_model
from lowrank.networks import NetworkSettings
from lowrank.utils import validate_model, write_text

MODEL_FILE, IMAGES_FILE = "model.safetensors", "images.json"


class Preprocessing(BaseModel):
    """How images are normalised for the network, and the classes of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: tuple[float, ...] = Field(min_length=1)  # of each channel, in units of 0..1
    std: tuple[float, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)  # in the order of the outputs
    example: list[list[list[int]]]  # one validation image, uint8 (C, H, W)

    def example_batch(self) -> NDArray[np.uint8]:
        """Return the example as a batch of one, uint8 (1, C, H, W)."""
        return np.array([self.example], dtype=np.uint8)


class ImageClassifier:
    """A network with the preprocessing of its images, as MLflow calls it."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        self.network, self.preprocessing = network.eval(), preprocessing
        self._offset = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self._deviation = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Compute logits.

        Args:
            images: uint8 (B, C, H, W).
            params: ignored; MLflow passes it.

        Returns:
            float32 (B, K).

        Raises:
            InputError: the images have another shape than the training images.
        """
        expected = np.shape(self.preprocessing.example)
        pixels = np.asarray(images)
        if pixels.shape[1:] != expected:
            raise InputError(f"images must be (B, {', '.join(map(str, expected))}), but got {pixels.shape}")
        batch = (torch.from_numpy(pixels.astype(np.float32)) - self._offset) / self._deviation
        logits: NDArray[np.float32] = self.network(batch).float().numpy()
        return logits


def save_classifier(
    folder: Path, network: nn.Module, data: ImageData, *, settings: NetworkSettings, method: SizedMethod
) -> None:
    """Write the folder of a classifier.

    The model file is written last and atomically, so a folder that has it is complete.

    Args:
        folder: is made if it is missing.
        network: the trained network.
        data: the set that it was trained on.
        settings: of the dense network.
        method: of the substituted sites.

    Raises:
        InputError: `settings` and `method` do not describe `network`.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = data.val.decode(torch.arange(1))[0].permute(2, 0, 1)
    preprocessing = Preprocessing(mean=data.mean, std=data.std, classes=data.classes, example=first.tolist())
    write_text(folder / IMAGES_FILE, preprocessing.model_dump_json())
    save_model(
        folder / MODEL_FILE, network, network=settings, method=method, image_shape=data.image_shape,
        classes=len(data.classes),
    )  # fmt: skip


def load_classifier(folder: Path) -> ImageClassifier:
    """Read a classifier.

    Args:
        folder: as `save_classifier` writes it.

    Returns:
        The classifier, on the CPU.

    Raises:
        InputError: a file is missing or damaged.
    """
    return ImageClassifier(load_model(folder / MODEL_FILE), read_preprocessing(folder))


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read `images.json`.

    Args:
        folder: as `save_classifier` writes it.

    Returns:
        Its content.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / IMAGES_FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object")
    return validate_model(Preprocessing, content, str(path))


def _load_pyfunc(data_path: str) -> ImageClassifier:
    """Load a model for MLflow; `data_path` is the folder."""
    return load_classifier(Path(data_path))
