"""Which layers of a network share channels: what must be removed together when a group falls away.

The networks are those whose removal is worked out: mlp, vgg16 and resnet9. In any other, groups are only masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lowrank.networks import NetworkSettings


@dataclass(frozen=True)
class Channels:
    """Channels that several layers share.

    Attributes:
        producers: names of the layers that give them; several where a skip connection adds their outputs.
        norms: the batch norm behind each producer.
        consumers: names of the layers that take them.
    """

    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """The shared channels of a network, and how a network with fewer of them is described.

    Attributes:
        channels: in the order of the network.
        fields: gives the fields of the network's settings from the number of channels of each entry.
    """

    channels: tuple[Channels, ...]
    fields: Callable[[Sequence[int]], dict[str, Any]]


def find_structure(network: nn.Module, settings: NetworkSettings) -> Structure | None:
    """Find the shared channels of a network.

    Args:
        network: with plain or variational layers.
        settings: of the network.

    Returns:
        The structure; None for a network whose groups are only masked.
    """
    finder = _FINDERS.get(settings.name)
    return None if finder is None else finder(network)


def _mlp(network: nn.Module) -> Structure:
    hidden = [name for name, module in network.named_modules() if name.startswith("hidden.") and _is_norm(module)]
    positions = [int(name.partition(".")[2]) for name in hidden]
    layers = [f"hidden.{position - 1}" for position in positions]
    after = [*layers[1:], "classifier"]
    channels = [Channels((), (), (layers[0],))]
    channels += [
        Channels((layer,), (norm,), (following,))
        for layer, norm, following in zip(layers, hidden, after, strict=True)
    ]  # fmt: skip
    return Structure(tuple(channels), lambda counts: {"inputs": counts[0], "hidden": tuple(counts[1:]), "width": 1.0})


def _vgg16(network: nn.Module) -> Structure:
    norms = [name for name, module in network.named_modules() if _is_norm(module)]
    layers = [_before(norm) for norm in norms]
    after = [*layers[1:], "classifier"]
    channels = tuple(
        Channels((layer,), (norm,), (following,)) for layer, norm, following in zip(layers, norms, after, strict=True)
    )
    return Structure(channels, _channel_fields)


def _resnet9(network: nn.Module) -> Structure:
    def unit(*names: str) -> dict[str, tuple[str, ...]]:
        return {"producers": tuple(f"{name}.0" for name in names), "norms": tuple(f"{name}.1" for name in names)}

    channels = (
        Channels(**unit("stem"), consumers=("stage1.0.0",)),
        Channels(**unit("stage1.0", "stage1.1.second"), consumers=("stage1.1.first.0", "stage2.0")),
        Channels(**unit("stage1.1.first"), consumers=("stage1.1.second.0",)),
        Channels(**unit("stage2"), consumers=("stage3.0.0",)),
        Channels(**unit("stage3.0", "stage3.1.second"), consumers=("stage3.1.first.0", "classifier")),
        Channels(**unit("stage3.1.first"), consumers=("stage3.1.second.0",)),
    )
    return Structure(channels, _channel_fields)


def _channel_fields(counts: Sequence[int]) -> dict[str, Any]:
    return {"channels": tuple(counts), "width": 1.0}


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _before(name: str) -> str:
    """Name the module before one of an `nn.Sequential`."""
    parent, _, position = name.rpartition(".")
    return f"{parent}.{int(position) - 1}"


_FINDERS: Mapping[str, Callable[[nn.Module], Structure]] = {"mlp": _mlp, "vgg16": _vgg16, "resnet9": _resnet9}
