"""The classifiers of timm (PyTorch Image Models), by name; timm need not be installed."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowrank.errors import InputError, did_you_mean
from lowrank.networks.images import IMAGENET_IMAGE, ImageShape
from lowrank.utils import first_line, prepare_torchvision

INSTALL = "pip install timm"
DEFAULT_WEIGHTS = "DEFAULT"


def timm_network(name: str, image_shape: ImageShape, classes: int, weights: str | None) -> nn.Module:
    """Make one of timm's classifiers.

    Args:
        name: as in `timm.list_models()`, with or without the tag of trained weights.
        image_shape: (C, H, W). A network that is built for one size of images gets this size.
        classes: number of classes; a trained network with another number gets a new last layer.
        weights: DEFAULT for the trained weights of the name, which timm downloads once; None for initial weights.

    Returns:
        The network.

    Raises:
        InputError: timm is not installed, the name or the weights are unknown or cannot be had, or the network cannot
            be made for such images.
    """
    timm = _import_timm(name)
    if ":" in name or not timm.is_model(name):
        raise InputError(
            f"unknown timm network {name!r}; timm.list_models() lists all{did_you_mean(name, timm.list_models())}"
        )
    if weights not in (None, DEFAULT_WEIGHTS):
        raise InputError(
            f"`weights` of timm:{name} must be {DEFAULT_WEIGHTS}, but got {weights!r}; a tag chooses others "
            "(timm:NAME.TAG), and --weights FILE reads a file"
        )
    config = timm.get_pretrained_cfg(name)
    options: dict[str, object] = {"num_classes": classes, "in_chans": image_shape[0]}
    if config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != image_shape[1:]:
        options["img_size"] = image_shape[1:]
    try:
        network: nn.Module = timm.create_model(name, pretrained=weights is not None, **options)
    except OSError as error:
        raise InputError(
            f"the weights of timm:{name} are not on this machine and cannot be downloaded: {first_line(error)}"
        ) from error
    except Exception as error:  # a builder may raise anything
        size = "x".join(map(str, image_shape))
        raise InputError(
            f"timm:{name} cannot be made for images of {size}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return network


def timm_images(name: str) -> tuple[ImageShape, int]:
    """Return what one of timm's classifiers was published for.

    Args:
        name: as for `timm_network`.

    Returns:
        The shape of the images (C, H, W) and the number of classes; ImageNet's where timm does not say.

    Raises:
        InputError: timm is not installed.
    """
    timm = _import_timm(name)
    config = timm.get_pretrained_cfg(name) if ":" not in name and timm.is_model(name) else None
    if config is None:
        return IMAGENET_IMAGE, 1000
    channels, height, width = config.input_size
    return (channels, height, width), config.num_classes or 1000


def _import_timm(name: str) -> Any:
    prepare_torchvision()
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name} needs the package timm ({first_line(error)}); {INSTALL}") from error
    return timm
