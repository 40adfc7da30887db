"""The last layer of a trained network, exchanged for one with another number of classes."""

from __future__ import annotations

from torch import nn

from lowrank.errors import InputError


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
