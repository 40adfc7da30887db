"""Networks from elsewhere: torchvision's by name, and the user's own as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from lowrank.errors import InputError, unknown
from lowrank.networks.base import ImageShape
from lowrank.utils.text import first_line

# Two of torchvision's builders must be told how to start, and add auxiliary heads that counting leaves out.
_OLD_BUILDERS = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}


def torchvision_network(name: str, image_shape: ImageShape, classes: int, weights: str | None) -> nn.Module:
    """torchvision's classifier `name`; with `weights` (such as DEFAULT) a trained one, downloaded once by torchvision.

    A trained network whose classes differ in number gets a new last layer. Raises InputError for an unknown name or
    unknown weights, and for images without three channels.
    """
    from lowrank.utils.torchvision_compat import torchvision  # as slow to import as torch itself

    models = torchvision.models
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("torchvision network", name, names)
    if image_shape[0] != 3:
        raise InputError(f"torchvision:{name} takes images of 3 channels, but got {image_shape[0]}")
    if weights is None:
        options = {**_OLD_BUILDERS[name], "init_weights": True} if name in _OLD_BUILDERS else {}
        return models.get_model(name, weights=None, num_classes=classes, **options)
    chosen = _weights(models, name, weights)
    network = models.get_model(name, weights=chosen)
    for head in ("aux1", "aux2", "AuxLogits"):  # trained along with two old networks
        if getattr(network, head, None) is not None:
            setattr(network, head, None)
            network.aux_logits = False
    trained = len(chosen.meta["categories"])
    if classes != trained:
        replace_head(network, trained, classes)
    return network


def _weights(models: Any, name: str, weights: str) -> Any:
    choices = models.get_model_weights(name)
    if weights not in choices.__members__:
        raise unknown(f"weights of torchvision:{name}", weights, choices.__members__)
    return choices[weights]


def replace_head(network: nn.Module, trained: int, classes: int) -> None:
    """Put a new layer of `classes` outputs, started from scratch, in the place of the last one with `trained`."""
    heads = [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == trained)
        or (isinstance(module, nn.Conv2d) and module.out_channels == trained)
    ]
    if not heads:
        raise InputError(f"{type(network).__name__} has no layer of {trained} outputs to replace by one of {classes}")
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
    """What the user's `package.module:function` returns.

    Of `image_shape`, `in_channels`, `classes`, `num_classes` and `width` the function is given those that it names.
    Raises InputError when it cannot be imported, wants something else, or returns no network.
    """
    offered = {
        "image_shape": image_shape, "in_channels": image_shape[0], "classes": classes, "num_classes": classes,
        "width": width,
    }  # fmt: skip
    function = _import(path)
    parameters = inspect.signature(function).parameters.values()
    named = {parameter.name: offered[parameter.name] for parameter in parameters if parameter.name in offered}
    for parameter in parameters:
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name not in offered and parameter.default is parameter.empty and not variadic:
            raise InputError(f"{path} asks for `{parameter.name}`; it can be given: {', '.join(sorted(offered))}")
    if width != 1.0 and "width" not in named:
        raise width_unsupported(path)
    network = function(**named)
    if not isinstance(network, nn.Module):
        raise InputError(f"{path} must return a torch.nn.Module, but returned a {type(network).__name__}")
    return network


def width_unsupported(name: str) -> InputError:
    """The error for a network that cannot be made thinner."""
    return InputError(f"{name} has no `width`, so it cannot be made thinner or wider")


def _import(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own module does on import
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"network {path!r} cannot be imported: {reason}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"network {path!r}: {module_name} has no function {function_name!r}")
    return function
