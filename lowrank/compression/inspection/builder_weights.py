"""Which weights a network's builder returns trained, whatever the seed is, and how to draw them anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from lowrank.networks import ImageShape, NetworkSettings, make_network, without_weights


@dataclass(frozen=True)
class BuilderWeights:
    """Trained weights of a network's builder.

    Attributes:
        modules: names of the modules whose weights are the same whatever the seed, and which torch can draw anew.
        others: names of such parameters that nothing draws anew: those of modules without `reset_parameters`. Empty
            unless there are `modules`.
    """

    modules: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


PUBLISHED = ("torchvision:", "timm:", "hf:")  # networks that are trained only where the settings name weights


def keeps_own_weights(settings: NetworkSettings) -> bool:
    """Return whether the weights of a dense network are its builder's, instead of drawn by this project's rule.

    Args:
        settings: of the network.

    Returns:
        True for the user's networks, and for published ones with trained weights.
    """
    return ":" in settings.name and (not settings.name.startswith(PUBLISHED) or settings.weights is not None)


@lru_cache(maxsize=64)
def find_builder_weights(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> BuilderWeights:
    """Find the weights that a builder returns trained.

    These are the same after two different seeds.

    Weights of one value, such as zeros, are initial ones. Frozen weights stay with their layers and are left out.

    Args:
        settings: of the network; names of trained weights in them are not used.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        What a student that starts from nothing must draw anew.

    Raises:
        InputError: the network cannot be built.
    """
    if ":" not in settings.name or settings.name.startswith(PUBLISHED):
        return BuilderWeights()
    networks = _build_twice(without_weights(settings), image_shape, classes)
    second = dict(networks[1].named_parameters())
    modules, others = [], []
    for name, module in networks[0].named_modules():
        fixed = [
            key
            for key, value in module.named_parameters(prefix=name, recurse=False)
            if value.requires_grad and key in second and _varies(value) and torch.equal(value, second[key])
        ]
        if fixed and _reset(module) is not None:
            modules.append(name)
        else:
            others += fixed
    return BuilderWeights(tuple(modules), tuple(others)) if modules else BuilderWeights()


def find_trained_weights(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> dict[str, Tensor]:
    """Find the trained weights of a builder: those that are the same for two seeds.

    Torch's generators stay as they are.

    Args:
        settings: of the network, with the trained weights that they name.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        Parameters and buffers by name. Empty if every layer draws its weights: constants alone, such as scales of
        norms, are not trained.

    Raises:
        InputError: the network cannot be built, or its weights cannot be had.
    """
    networks = _build_twice(settings, image_shape, classes)
    first, second = (network.state_dict() for network in networks)
    same = {key: value for key, value in first.items() if key in second and torch.equal(value, second[key])}
    for name, module in networks[0].named_modules():
        parameter_names = (key for key, _ in module.named_parameters(prefix=name, recurse=False) if key in same)
        if _reset(module) is not None and any(_varies(same[key]) for key in parameter_names):
            return same
    return {}


def _varies(tensor: Tensor) -> bool:
    """Return whether a tensor of any type has two different values."""
    return tensor.numel() > 1 and not bool((tensor == tensor.flatten()[0]).all())


def _build_twice(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> list[nn.Module]:
    """Build a network from two different seeds; torch's generators stay as they are."""
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            networks.append(make_network(settings, image_shape, classes))
    return networks


def redraw(network: nn.Module, weights: BuilderWeights) -> None:
    """Draw a builder's weights anew, in place, from torch's generator.

    Args:
        network: as the builder returns it.
        weights: of the same network.
    """
    for name in weights.modules:
        reset = _reset(network.get_submodule(name))
        assert reset is not None, f"`{name}` could be drawn anew before"
        reset()


def _reset(module: nn.Module) -> Callable[[], None] | None:
    """Return the method by which a module draws its weights; None if it has none."""
    methods = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((method for method in methods if callable(method)), None)
