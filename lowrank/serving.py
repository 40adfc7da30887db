"""A trained classifier as a folder of plain data, ready for use on images as they come.

    model.safetensors   the tensors, and the settings that describe the network (see `lowrank.io.model_file`)
    images.json         mean and deviation of each channel, the names of the classes, one example image

`_load_pyfunc` is how MLflow's `python_function` flavour asks a module for a model; reading either file runs no code of
theirs. B is the number of images, (C, H, W) the shape of one, K the number of classes.
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

from lowrank.compression.allocation import SizedMethod
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io.model_file import load_model, save_model
from lowrank.networks.registry import NetworkSettings
from lowrank.utils.validation import validate_model

MODEL_FILE, IMAGES_FILE = "model.safetensors", "images.json"


class Preprocessing(BaseModel):
    """What is done to an image before the network sees it, and what its outputs stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: tuple[float, ...] = Field(min_length=1)  # of each channel, in units of 0..1
    std: tuple[float, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)  # in the order of the outputs
    example: list[list[list[int]]]  # one validation image, uint8 (C, H, W)

    def example_batch(self) -> NDArray[np.uint8]:
        """The example as a batch of one, uint8 (1, C, H, W)."""
        return np.array([self.example], dtype=np.uint8)


class ImageClassifier:
    """A network with the preprocessing of its images; what MLflow calls."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        self.network, self.preprocessing = network.eval(), preprocessing
        self._offset = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self._deviation = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Logits, float32 (B, K), of images uint8 (B, C, H, W). Raises InputError for another shape."""
        expected = np.shape(self.preprocessing.example)
        found = np.asarray(images)
        if found.shape[1:] != expected:
            raise InputError(f"images must be (B, {', '.join(map(str, expected))}), but got {found.shape}")
        batch = (torch.from_numpy(found.astype(np.float32)) - self._offset) / self._deviation
        logits: NDArray[np.float32] = self.network(batch).float().numpy()
        return logits


def save_classifier(
    folder: Path, network: nn.Module, data: ImageData, *, settings: NetworkSettings, method: SizedMethod
) -> None:
    """Write the folder; the model file comes last and whole, so that a folder that has it is complete.

    Raises InputError when `settings` and `method` do not describe `network`, OSError when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = data.val.decode(torch.arange(1))[0].permute(2, 0, 1)
    about = Preprocessing(mean=data.mean, std=data.std, classes=data.classes, example=first.tolist())
    (folder / IMAGES_FILE).write_text(about.model_dump_json())
    save_model(
        folder / MODEL_FILE, network, network=settings, method=method, image_shape=data.image_shape,
        classes=len(data.classes),
    )  # fmt: skip


def load_classifier(folder: Path) -> ImageClassifier:
    """The classifier of a folder, on the CPU; raises InputError for one that is missing or damaged."""
    return ImageClassifier(load_model(folder / MODEL_FILE), read_preprocessing(folder))


def read_preprocessing(folder: Path) -> Preprocessing:
    """What `images.json` says; raises InputError when it is missing or damaged."""
    path = folder / IMAGES_FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object")
    return validate_model(Preprocessing, content, str(path))


def _load_pyfunc(data_path: str) -> ImageClassifier:
    """MLflow's entry: `data_path` is the folder."""
    return load_classifier(Path(data_path))
