"""Image classifiers that transformers has saved to a folder; transformers need not be installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.networks.images import IMAGENET_IMAGE, ImageShape
from lowrank.utils import first_line, prepare_torchvision

INSTALL = "pip install transformers"
DEFAULT_WEIGHTS = "DEFAULT"
CONFIG_FILE = "config.json"


class Logits:
    """Makes a classifier of transformers return its logits, and no object."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        logits: Tensor = super().forward(pixel_values=x, return_dict=True).logits  # type: ignore[misc]
        return logits


def transformers_network(folder: str, image_shape: ImageShape, classes: int, weights: str | None) -> nn.Module:
    """Make an image classifier from a folder that transformers has saved.

    Only `config.json` and safetensors are read. No code of the folder is run, and nothing is downloaded.

    Args:
        folder: its path.
        image_shape: (C, H, W); must be what the configuration says, where it says it.
        classes: number of classes; a trained network with another number gets a new last layer.
        weights: DEFAULT for the weights in the folder; None for initial weights.

    Returns:
        The network.

    Raises:
        InputError: transformers is not installed, the folder holds no image classifier, or it needs code of its own.
    """
    prepare_torchvision()
    path = Path(folder).expanduser()
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"hf:{folder} must be a folder with a {CONFIG_FILE}, as transformers saves it")
    if weights not in (None, DEFAULT_WEIGHTS):
        raise InputError(f"`weights` of hf:{folder} must be {DEFAULT_WEIGHTS} (the folder's own), but got {weights!r}")
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"hf:{folder} needs the package transformers ({first_line(error)}); {INSTALL}") from error
    try:
        network = _load(transformers, path, image_shape[0], classes, weights)
    except Exception as error:  # transformers raises anything about a folder that it cannot read
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"hf:{folder} cannot be made: {reason}") from error
    # A subclass and no module around it: layers keep the names that they have in files of weights
    network.__class__ = type(type(network).__name__, (Logits, type(network)), {})
    return network


def transformers_images(folder: str) -> tuple[ImageShape, int]:
    """Return what an image classifier in a folder was made for.

    Args:
        folder: its path.

    Returns:
        The shape of the images (C, H, W) and the number of classes; ImageNet's where the configuration does not say.
    """
    path = Path(folder).expanduser() / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):  # `transformers_network` says what is wrong
        config = {}
    size = config.get("image_size", IMAGENET_IMAGE[1:])
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return (config.get("num_channels", 3), height, width), len(config.get("id2label", ())) or 1000


def _load(transformers: Any, path: Path, channels: int, classes: int, weights: str | None) -> nn.Module:
    offline: dict[str, object] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(str(path), **offline)
    stated = getattr(config, "num_channels", channels)
    if stated != channels:
        raise InputError(f"its configuration says {stated} channels, but the images have {channels}")
    config.num_labels = classes
    classifier = transformers.AutoModelForImageClassification
    if weights is None:
        network: nn.Module = classifier.from_config(config, trust_remote_code=False)
    else:
        network = classifier.from_pretrained(
            str(path), config=config, ignore_mismatched_sizes=True, use_safetensors=True, **offline
        )
    return network.float().train()
