"""The classifiers of torchvision, by name, with initial or trained weights."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

from torch import nn

from lowrank.errors import InputError, unknown
from lowrank.networks.external.heads import replace_head
from lowrank.networks.images import ImageShape
from lowrank.utils import first_line

# Two of torchvision's builders want `init_weights`, and add auxiliary heads that counting leaves out.
_OLD_BUILDERS = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}


def torchvision_network(
    name: str, image_shape: ImageShape, classes: int, weights: str | None, *, trained: bool = False
) -> nn.Module:
    """Make one of torchvision's classifiers.

    Args:
        name: as in `torchvision.models`.
        image_shape: (C, H, W).
        classes: number of classes; a trained network with another number gets a new last layer.
        weights: name of trained weights, such as DEFAULT, which torchvision downloads once; None for initial weights.
        trained: with initial weights, build the network as the trained one is: googlenet and inception_v3 were trained
            on images of another normalisation and convert their input.

    Returns:
        The network.

    Raises:
        InputError: the name or the weights are unknown or cannot be had, or the images have not three channels.
    """
    from lowrank.utils import torchvision  # as slow to import as torch itself

    models = torchvision.models
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("torchvision network", name, names)
    if image_shape[0] != 3:
        raise InputError(f"torchvision:{name} takes images of 3 channels, but got {image_shape[0]}")
    if weights is None:
        options = {**_OLD_BUILDERS[name], "init_weights": True} if name in _OLD_BUILDERS else {}
        network = models.get_model(name, weights=None, num_classes=classes, **options)
        if trained and hasattr(network, "transform_input"):
            network.transform_input = True
        return network
    trained_weights = _weights(models, name, weights)
    try:
        network = models.get_model(name, weights=trained_weights)
    # urllib's errors are OSErrors; a download that breaks off or has another hash raises one of the others
    except (OSError, HTTPException, RuntimeError) as error:
        raise InputError(
            f"the weights {weights} of torchvision:{name} are not on this machine and cannot be downloaded: "
            f"{first_line(error)}"
        ) from error
    for head in ("aux1", "aux2", "AuxLogits"):  # the auxiliary heads of two old networks
        if getattr(network, head, None) is not None:
            setattr(network, head, None)
            network.aux_logits = False
    trained_classes = len(trained_weights.meta["categories"])
    if classes != trained_classes:
        replace_head(network, trained_classes, classes)
    return network


def _weights(models: Any, name: str, weights: str) -> Any:
    choices = models.get_model_weights(name)
    if weights not in choices.__members__:
        raise unknown(f"weights of torchvision:{name}", weights, choices.__members__)
    return choices[weights]
