"""A trained classifier with what it expects of an image, ready for use on images as they come.

As a folder of plain data:

    model.safetensors   the tensors, and the settings that describe the network (see `lowrank.io.model_file`)
    images.json         what it expects of an image, the names of the classes, one example image

or as one file of an export, which holds all but the example. MLflow's `python_function` flavour calls `_load_pyfunc`.
The module keeps its path, because stored MLflow models name it. Reading runs no code from any file.

Letters: B images, (C, H, W) the shape of one, K classes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io import (
    ImagePreprocessing,
    ModelSpecification,
    data_preprocessing,
    load_any_model,
    parse_preprocessing,
    parse_specification,
    read_metadata,
    write_model,
)
from lowrank.networks import ImageShape, check_own_code
from lowrank.utils import atomic_folder, validate_model, write_text

MODEL_FILE, IMAGES_FILE = "model.safetensors", "images.json"
_NAMED_MODELS = 5  # that a message names
ALLOW_CODE = "LOWRANK_ALLOW_CODE"  # environment variable: 1 lets a model's network be a function of the user's code


class Preprocessing(ImagePreprocessing):
    """The content of `images.json`: what the network expects of an image, the classes, and one image."""

    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)
    source: str = IMAGES_FILE  # files of older versions say none
    example: list[list[list[int]]]  # one validation image, uint8 (C, H, W)

    def example_batch(self) -> NDArray[np.uint8]:
        """Return the example as a batch of one, uint8 (1, C, H, W)."""
        return np.array([self.example], dtype=np.uint8)


class ImageClassifier:
    """A network with the preprocessing of its images, as MLflow calls it.

    Attributes:
        network: in evaluation mode.
        preprocessing: what it expects of an image.
        image_shape: (C, H, W) of the images that `predict` takes.
        classes: number of outputs, K.
    """

    def __init__(self, network: nn.Module, preprocessing: ImagePreprocessing, image_shape: ImageShape, classes: int):
        self.network, self.preprocessing, self.image_shape = network.eval(), preprocessing, image_shape
        self.classes = classes

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8], params: dict[str, object] | None = None) -> NDArray[np.float32]:
        """Compute logits.

        Args:
            images: uint8 (B, C, H, W), rgb, of the size that the network gets; not normalised.
            params: ignored; MLflow passes it.

        Returns:
            float32 (B, K).

        Raises:
            InputError: the images have another shape or dtype.
        """
        pixels = np.asarray(images)
        if pixels.shape[1:] != self.image_shape:
            raise InputError(f"images must be (B, {', '.join(map(str, self.image_shape))}), but got {pixels.shape}")
        if pixels.dtype != np.uint8:
            raise InputError(f"images must be uint8, values from 0 to 255, but got {pixels.dtype}")
        batch = self.preprocessing.normalise(torch.from_numpy(pixels.copy()))  # which may be read-only
        logits: NDArray[np.float32] = self.network(batch).float().numpy()
        return logits


def save_classifier(folder: Path, network: nn.Module, data: ImageData, specification: ModelSpecification) -> None:
    """Write the folder of a classifier, whole or not at all.

    Args:
        folder: is made if it is missing, with its parents, and replaced if it exists.
        network: the trained network.
        data: the set that it was trained on.
        specification: describes `network`.

    Raises:
        InputError: `specification` describes another network.
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, replace=True) as temporary:
        write_images(temporary, data)
        write_model(temporary / MODEL_FILE, network, specification, data_preprocessing(data))


def write_images(folder: Path, data: ImageData) -> None:
    """Write `images.json`: what a network that was trained on a set expects of an image.

    Args:
        folder: that has the network's weights.
        data: the set.

    Raises:
        OSError: the file cannot be written.
    """
    content = Preprocessing(**data_preprocessing(data).model_dump(), example=_example(data).tolist())
    write_text(folder / IMAGES_FILE, content.model_dump_json())


def _example(data: ImageData) -> torch.Tensor:
    """Return the first validation image, uint8 (C, H, W): from memory, since the files may have gone meanwhile."""
    images = data.val.images[:1] if data.val.is_decoded else data.val.decode(torch.arange(1))
    return images[0].permute(2, 0, 1)


def load_classifier(path: Path, *, trusted_network: str | None = None) -> ImageClassifier:
    """Read a classifier.

    Args:
        path: a folder as `save_classifier` writes it, or one safetensors file of an export.
        trusted_network: the network `package.module:function` of the user's code that the file may name.

    Returns:
        The classifier, on the CPU.

    Raises:
        InputError: a file is missing or damaged, does not say what it expects of an image, or names code that is not
            trusted.
    """
    if path.is_dir():
        file = path / MODEL_FILE
        specification, _ = _read_description(file)
        preprocessing: ImagePreprocessing = read_preprocessing(path)
    else:
        file = path
        specification, stored = _read_description(file)
        if stored is None:
            raise InputError(f"{path} does not say what it expects of an image; give the folder that has {IMAGES_FILE}")
        preprocessing = stored
    network = load_any_model(file, trusted_network=trusted_network)
    return ImageClassifier(network, preprocessing, specification.image_shape, specification.classes)


def network_name(path: Path) -> str:
    """Read which network a classifier has, without making it.

    Args:
        path: as for `load_classifier`.

    Returns:
        The name, which is `package.module:function` for code of somebody's own.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _read_description(path / MODEL_FILE if path.is_dir() else path)[0].network.name


def _read_description(path: Path) -> tuple[ModelSpecification, ImagePreprocessing | None]:
    """Read what a model file says of its network and of images; its tensors stay where they are."""
    if not path.is_file():
        raise InputError(f"there is no model file {path}{_models_beside(path)}")
    try:
        metadata = read_metadata(path)
    except InputError as error:
        if path.suffix == ".safetensors":
            raise
        raise InputError(f"{path} is no safetensors file{_models_beside(path)}") from error
    try:
        specification = parse_specification(metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return specification, parse_preprocessing(metadata, str(path))


def _models_beside(path: Path) -> str:
    """Name the models in the folder of a file that is none: those of a study, else the files of an export."""
    folders = [file.parent for file in path.parent.glob(f"*/{MODEL_FILE}")]
    models = sorted(map(str, folders or path.parent.glob("*.safetensors")))
    names = f"{', '.join(models[:_NAMED_MODELS])}{', ...' * (len(models) > _NAMED_MODELS)}"
    return f"; there are {names}" if models else ""


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object")
    return validate_model(Preprocessing, content, str(path))


def _load_pyfunc(data_path: str) -> ImageClassifier:
    """Load a model for MLflow, which passes the folder and nothing else: the environment allows code."""
    folder = Path(data_path)
    name = network_name(folder)
    allowed = os.environ.get(ALLOW_CODE) == "1"
    check_own_code([name], allowed, source=str(folder), permission=f"{ALLOW_CODE}=1 in the environment")
    return load_classifier(folder, trusted_network=name)
