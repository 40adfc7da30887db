"""What a teacher says about views of images, and where a student is asked the same.

Shapes: B images, K classes, C channels, H x W positions of a tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowrank.distillation.losses import attention_map
from lowrank.errors import InputError, unknown
from lowrank.networks.images import ImageShape
from lowrank.utils.hooks import ForwardHooks

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Signals:
    """What a teacher says about a batch: logits (B, K) and one attention map (B, H, W) for each of its taps."""

    logits: Tensor
    maps: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Logits and maps."""
        return [self.logits, *self.maps]

    def cut(self, parts: int) -> list[Signals]:
        """The same in so many parts of the batch, cut as torch's `tensor_split` cuts."""
        logits, *maps = (tensor.tensor_split(parts) for tensor in self.tensors)
        return [Signals(each, tuple(others)) for each, *others in zip(logits, *maps, strict=True)]

    def empty_like(self) -> Signals:
        """Memory for signals of these shapes."""
        return Signals(torch.empty_like(self.logits), tuple(torch.empty_like(each) for each in self.maps))


class Teacher(Protocol):
    """A source of signals: a network that runs, or a cache of what it said."""

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """What the teacher says about the views `cache_epoch` of the images `indices`; `images` are those very views.

        Args:
            images: normalised views (B, C, H, W) on the student's device.
            indices: global indices of the images, int64 (B,).
            cache_epoch: the epoch that their augmentation was drawn for, modulo the number of cache epochs.
        """


class Taps(ForwardHooks):
    """Attention maps of named modules, collected while the network runs inside `with`."""

    def __init__(self, network: nn.Module, names: Sequence[str]):
        modules, self.names = dict(network.named_modules()), tuple(names)
        for name in names:
            if name not in modules:
                raise unknown("tap", name, [known for known in modules if known])
        self._modules = [modules[name] for name in names]
        self._maps: dict[int, Tensor] = {}

    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        return ((module, self._keeper(index)) for index, module in enumerate(self._modules))

    def _keeper(self, index: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[index] = attention_map(output)

        return keep

    def take(self) -> tuple[Tensor, ...]:
        """The maps (B, H, W) of the last forward pass, in the order of the names; each can be taken once.

        Raises InputError when a tap's module did not run.
        """
        maps, self._maps = self._maps, {}
        if len(maps) < len(self._modules):
            raise InputError(f"{len(self._modules) - len(maps)} of {len(self._modules)} taps did not run")
        return tuple(maps[index] for index in range(len(self._modules)))


def default_taps(network: nn.Module) -> tuple[str, ...]:
    """The ends of the network's stages; raises InputError for a network that does not name them."""
    taps = tuple(getattr(network, "taps", ()))
    if not taps:
        raise InputError(f"{type(network).__name__} does not name the ends of its stages; give the taps by name")
    return taps


def common_sizes(teacher: Sequence[tuple[int, int]], student: Sequence[tuple[int, int]]) -> Sizes:
    """The size (h, w) at which each pair of maps is compared: the smaller of the two on each axis."""
    return tuple((min(a[0], b[0]), min(a[1], b[1])) for a, b in zip(teacher, student, strict=True))


@torch.no_grad()
def tap_sizes(network: nn.Module, taps: Sequence[str], image_shape: ImageShape) -> Sizes:
    """Height and width of each tap for images of (C, H, W), from one empty image; raises InputError for an unknown."""
    if not taps:
        return ()
    place: Any = next(network.parameters(), torch.empty(0))
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with Taps(network, taps) as collected:
            network(torch.zeros(1, *image_shape, device=place.device, dtype=place.dtype))
            return tuple((each.shape[1], each.shape[2]) for each in collected.take())
    finally:
        for module in training:
            module.training = True


class LiveTeacher:
    """A network that is asked anew about every batch, in evaluation mode and without gradients.

    It is no `nn.Module`: neither `train()` nor an optimizer of the student can reach it.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str], *, autocast: torch.dtype | None = None):
        self._network = network.eval().requires_grad_(False)
        self._taps = Taps(network, taps)
        self._autocast = autocast

    @torch.no_grad()
    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """See Teacher; `indices` and `cache_epoch` are not needed."""
        device = images.device.type
        with self._taps, torch.autocast(device, self._autocast, enabled=self._autocast is not None):
            logits = self._network(images)
        return Signals(logits.float(), self._taps.take())
