"""Networks from outside the project: torchvision's by name, and the user's as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from lowrank.errors import InputError, LowrankError, unknown
from lowrank.networks.images import ImageShape
from lowrank.networks.own_networks import prepare_network
from lowrank.utils import first_line

# Two of torchvision's builders want `init_weights`, and add auxiliary heads that counting leaves out.
_OLD_BUILDERS = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}


def torchvision_network(name: str, image_shape: ImageShape, classes: int, weights: str | None) -> nn.Module:
    """Make one of torchvision's classifiers.

    Args:
        name: as in `torchvision.models`.
        image_shape: (C, H, W).
        classes: number of classes; a trained network with another number gets a new last layer.
        weights: name of trained weights, such as DEFAULT, which torchvision downloads once; None for initial weights.

    Returns:
        The network.

    Raises:
        InputError: the name or the weights are unknown, or the images have not three channels.
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
        return models.get_model(name, weights=None, num_classes=classes, **options)
    trained_weights = _weights(models, name, weights)
    network = models.get_model(name, weights=trained_weights)
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


def replace_head(network: nn.Module, trained_classes: int, classes: int) -> None:
    """Replace the last layer of a network by a new one with initial weights.

    Args:
        network: is changed.
        trained_classes: outputs of the layer to replace.
        classes: outputs of the new layer.

    Raises:
        InputError: no layer has `trained_classes` outputs.
    """
    heads = [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == trained_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == trained_classes)
    ]
    if not heads:
        raise InputError(
            f"{type(network).__name__} has no layer of {trained_classes} outputs to replace by one of {classes}"
        )
    name, head = heads[-1]
    bias = head.bias is not None
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, classes, bias=bias)
    else:
        assert head.kernel_size == (1, 1), "a convolution that classifies is pointwise"
        new = nn.Conv2d(head.in_channels, classes, 1, bias=bias)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def imported_network(path: str, image_shape: ImageShape, classes: int, width: float) -> nn.Module:
    """Make a network by the user's function.

    The function gets those of the arguments `image_shape`, `in_channels`, `classes`, `num_classes` and `width` that it
    names.

    Args:
        path: `package.module:function`.
        image_shape: (C, H, W).
        classes: number of classes.
        width: multiple of the network's channels; 1 for a function without `width`.

    Returns:
        What the function returns.

    Raises:
        InputError: the function cannot be imported, has other required arguments, raises an error, or returns no
            network that can be trained (see `prepare_network`).
    """
    arguments = {
        "image_shape": image_shape, "in_channels": image_shape[0], "classes": classes, "num_classes": classes,
        "width": width,
    }  # fmt: skip
    function = _import(path)
    parameters = inspect.signature(function).parameters.values()
    passed = {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}
    for parameter in parameters:
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name not in arguments and parameter.default is parameter.empty and not variadic:
            raise InputError(f"{path} asks for `{parameter.name}`; it can be given: {', '.join(sorted(arguments))}")
    if width != 1.0 and "width" not in passed:
        raise width_unsupported(path)
    try:
        network = function(**passed)
    except LowrankError:
        raise
    except Exception as error:  # the user's function may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        shown = ", ".join(f"{name}={value}" for name, value in passed.items())
        raise InputError(f"network {path!r} raised an error for {path.partition(':')[2]}({shown}): {reason}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} must return a torch.nn.Module, but returned a {type(network).__name__}")
    return prepare_network(network, path, image_shape)


def width_unsupported(name: str) -> InputError:
    """Return the error for a network that has no `width`."""
    return InputError(f"{name} has no `width`, so it cannot be made thinner or wider")


def _import(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"network {path!r} cannot be imported: {reason}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"network {path!r}: {module_name} has no function {function_name!r}")
    return function
