"""Prepares a network of the user's own for everything else here: sizes of lazy layers, types, and what it returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank.errors import InputError
from lowrank.networks.images import ImageShape
from lowrank.utils import first_line, keep_modes


def prepare_network(network: nn.Module, name: str, image_shape: ImageShape) -> nn.Module:
    """Check a network and make it return plain logits.

    What `torch.compile`, `DataParallel` and `DistributedDataParallel` have put around it is taken off. Lazy layers get
    their sizes from one zero image. A network that returns its logits as `.logits`, under the key "logits" or as a
    tuple of one gets a hook that returns the tensor alone.

    Args:
        network: is changed in place.
        name: of the network, for messages.
        image_shape: (C, H, W).

    Returns:
        The network.

    Raises:
        InputError: it is TorchScript, has no parameters, its weights are not float32 or share memory, it keeps state
            that is no tensor, or its lazy layers cannot take such an image.
    """
    network = unwrap_network(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(
            f"{name} returned a TorchScript network, whose layers cannot be replaced: return the nn.Module that it was "
            "made from"
        )
    tensors = [*network.parameters(), *network.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        _fix_sizes(network, name, image_shape)
    parameters = dict(network.named_parameters())
    if not parameters:
        raise InputError(f"{name} has no parameters, so there is nothing to train")
    for key, value in parameters.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(
                f"{name} must have float32 weights, but `{key}` is {str(value.dtype).removeprefix('torch.')}: return "
                "network.float(); recipes choose the precision of the training"
            )
        if value.is_complex() and value.requires_grad:
            raise InputError(
                f"{name} must have float32 weights, but `{key}` is complex: keep its real and imaginary part as a last "
                "axis of two, and let `forward` take torch.view_as_complex of it"
            )
        if _repeats_memory(value):
            raise InputError(
                f"{name} has the parameter `{key}`, whose entries share memory as `expand` leaves it: give it memory "
                "of its own by clone()"
            )
    for module in network.modules():
        _give_buffers_memory(module)
    for key, state in network.state_dict().items():
        if not isinstance(state, Tensor):
            raise InputError(
                f"{name} keeps `{key}` in its state, a {type(state).__name__}, but files of weights hold tensors alone"
            )
    network.register_forward_hook(take_logits)
    return network


def _repeats_memory(tensor: Tensor) -> bool:
    """Return whether entries of a tensor are one number in memory, as `expand` leaves them."""
    strided = tensor.layout is torch.strided
    return strided and any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _give_buffers_memory(module: nn.Module) -> None:
    """Copy expanded buffers: neither a checkpoint nor an undone step can be written into them."""
    for key, buffer in module._buffers.items():
        if buffer is not None and _repeats_memory(buffer):
            module._buffers[key] = buffer.clone(memory_format=torch.contiguous_format)


def unwrap_network(network: nn.Module) -> nn.Module:
    """Return the network inside what only changes how it runs.

    Trials have devices and a compiler of their own.

    Args:
        network: as `torch.compile`, `DataParallel` or `DistributedDataParallel` return it, or any other.

    Returns:
        The module inside; the network itself where nothing is around it.
    """
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif "_orig_mod" in network._modules:  # of torch.compile
            network = network.get_submodule("_orig_mod")
        else:
            return network


def copy_network(network: nn.Module) -> nn.Module:
    """Copy a network with all of its state.

    Args:
        network: any module.

    Returns:
        The copy.

    Raises:
        InputError: something in it cannot be copied, such as a lock.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # the user's objects may raise anything
        raise InputError(
            f"{type(network).__name__} cannot be copied, which compression and exports need: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


@torch.no_grad()
def _fix_sizes(network: nn.Module, name: str, image_shape: ImageShape) -> None:
    try:
        with keep_modes(network):
            network.eval()(torch.zeros(1, *image_shape))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"the lazy layers of {name} cannot take an image of {image_shape}: {reason}") from error
    lazy = [key for key, value in network.named_parameters() if is_lazy(value)]
    if lazy:
        raise InputError(f"{name} does not run `{lazy[0]}` in evaluation, so its size stays unknown; give it a size")


def take_logits(network: nn.Module, inputs: Any, output: Any) -> Tensor | None:
    """Take the logits out of an output; a forward hook that keeps nothing.

    Args:
        network: that was run.
        inputs: of the network.
        output: of the network.

    Returns:
        The logits; None, which leaves the output as it is, where there are none inside.
    """
    if isinstance(output, Mapping):
        inside = output.get("logits")
    elif isinstance(output, tuple | list) and len(output) == 1:
        inside = output[0]
    else:
        inside = None if isinstance(output, Tensor) else getattr(output, "logits", None)
    return inside if isinstance(inside, Tensor) else None
