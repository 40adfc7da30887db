"""Teachers: their outputs on augmented images, and the modules of a network whose attention is compared.

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
from lowrank.networks import ImageShape
from lowrank.utils import ForwardHooks, keep_modes, modules_with_hooks

Sizes = tuple[tuple[int, int], ...]
DETECTED_TAPS = 3  # of a row of equal blocks


@dataclass(frozen=True)
class Signals:
    """A teacher's outputs on a batch, which the student's are compared with.

    Attributes:
        logits: (B, K).
        maps: an attention map (B, H, W) for each tap.
    """

    logits: Tensor
    maps: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Logits and maps in one list."""
        return [self.logits, *self.maps]

    def cut(self, parts: int) -> list[Signals]:
        """Split the batch into `parts`, as torch's `tensor_split` does."""
        logits, *maps = (tensor.tensor_split(parts) for tensor in self.tensors)
        return [Signals(part, tuple(attention)) for part, *attention in zip(logits, *maps, strict=True)]

    def gather(self) -> Signals:
        """Return the signals themselves."""
        return self

    def empty_like(self) -> Signals:
        """Allocate signals of the same shapes."""
        return Signals(torch.empty_like(self.logits), tuple(torch.empty_like(attention) for attention in self.maps))

    def accepts(self, other: BatchSignals) -> bool:
        """Return whether `copy_` can take these."""
        return isinstance(other, Signals) and all(
            (one.shape, one.dtype) == (another.shape, another.dtype)
            for one, another in zip(self.tensors, other.tensors, strict=True)
        )

    def copy_(self, other: BatchSignals) -> None:
        """Copy the values of other signals of the same shapes.

        Args:
            other: what `accepts` agrees to.
        """
        torch._foreach_copy_(self.tensors, other.gather().tensors)


class BatchSignals(Protocol):
    """A teacher's outputs on a batch, or where they are."""

    def gather(self) -> Signals:
        """Read the outputs."""

    def cut(self, parts: int) -> Sequence[BatchSignals]:
        """Split the batch into `parts`, as torch's `tensor_split` does."""

    def empty_like(self) -> BatchSignals:
        """Allocate what `copy_` writes to."""

    def accepts(self, other: Any) -> bool:
        """Return whether `copy_` can take `other`."""

    def copy_(self, other: Any) -> None:
        """Take the values of `other`, in place."""


class Teacher(Protocol):
    """A source of signals: a network that runs, or a cache of its outputs."""

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> BatchSignals:
        """Return the teacher's outputs on augmented images.

        Args:
            images: normalised and augmented (B, C, H, W), on the student's device.
            indices: global indices of the images, int64 (B,).
            cache_epoch: the epoch that their augmentation was drawn for, modulo the number of cache epochs.

        Returns:
            Logits and attention maps.
        """


class Taps(ForwardHooks):
    """Attention maps of named modules (taps).

    They are collected while the network runs within a `with` block.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]):
        """Look the modules up.

        Args:
            network: the network.
            names: of its modules.

        Raises:
            InputError: there is no module of such a name.
        """
        modules, self.names = dict(network.named_modules()), tuple(names)
        for name in names:
            if name not in modules:
                raise unknown("tap", name, [module for module in modules if module])
        self._modules = [modules[name] for name in names]
        self._maps: dict[int, Tensor] = {}

    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        return ((module, self._keeper(index)) for index, module in enumerate(self._modules))

    def _keeper(self, index: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() not in (3, 4):
                shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise InputError(
                    f"tap `{self.names[index]}` must give maps (B, C, H, W) or tokens (B, N, C), but gives {shape}"
                )
            self._maps[index] = attention_map(output)

        return keep

    def take(self) -> tuple[Tensor, ...]:
        """Return the maps of the last forward pass and forget them.

        Returns:
            A map (B, H, W) for each name, in the order of the names.

        Raises:
            InputError: a tap's module did not run.
        """
        maps = dict(self._maps)
        self._maps.clear()  # not another dictionary: compiled code would return the maps for the one that is left
        if len(maps) < len(self._modules):
            raise InputError(f"{len(self._modules) - len(maps)} of {len(self._modules)} taps did not run")
        return tuple(maps[index] for index in range(len(self._modules)))


def default_taps(network: nn.Module, image_shape: ImageShape | None = None) -> tuple[str, ...]:
    """Return the taps that a network proposes: the ends of its stages.

    Args:
        network: the network.
        image_shape: (C, H, W) of an image, on which a network runs that does not name them; None: it must.

    Returns:
        Names of modules, in the order in which they end.

    Raises:
        InputError: the network does not name the ends of its stages, and none can be found.
    """
    taps = tuple(getattr(network, "taps", ()))
    if not taps and image_shape is not None:
        taps = detect_taps(network, image_shape)
    if not taps:
        raise InputError(
            f"attention transfer compares maps at the ends of stages, and in {type(network).__name__} none can be "
            "found: name modules with maps (`teacher.taps`, `teacher.student_taps`), or take `train.kd_weight` without "
            "`train.attention_weight`"
        )
    return taps


@torch.no_grad()
def detect_taps(network: nn.Module, image_shape: ImageShape) -> tuple[str, ...]:
    """Find modules at which a network's attention can be compared, by running it on one zero image.

    They are the last modules before the size of the feature maps changes. In a network that keeps one size, such as a
    transformer, they are ends of its blocks: up to three, evenly spaced.

    Args:
        network: any network; each module keeps its mode.
        image_shape: (C, H, W) of the image.

    Returns:
        Names of modules, in the order in which they end; () where there are none.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes.pop(name, None)  # a module that runs twice ends at its second run
                shapes[name] = tuple(output.shape)

        return hook

    parameter: Any = next(network.parameters(), torch.empty(0))
    handles = [module.register_forward_hook(make_hook(name)) for name, module in modules_with_hooks(network) if name]
    try:
        with keep_modes(network):
            network.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    last_of_size: dict[tuple[int, ...], str] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            last_of_size.pop(shape[2:], None)
            last_of_size[shape[2:]] = name
    ends = tuple(last_of_size.values())
    return ends if len(ends) > 1 else _block_ends(network, shapes) or ends


def _block_ends(network: nn.Module, shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Up to DETECTED_TAPS blocks, evenly spaced, of the longest row of blocks of one class with maps or tokens."""
    longest: list[str] = []
    for parent_name, parent in network.named_modules():
        rows: dict[type, list[str]] = {}
        for name, child in parent.named_children():
            full_name = f"{parent_name}.{name}" if parent_name else name
            if len(shapes.get(full_name, ())) in (3, 4) and next(child.children(), None) is not None:
                rows.setdefault(type(child), []).append(full_name)
        longest = max((longest, *rows.values()), key=len)
    count = len(longest)
    if count < 2:
        return ()
    parts = min(DETECTED_TAPS, count)
    return tuple(longest[-(-count * part // parts) - 1] for part in range(1, parts + 1))


def common_sizes(teacher: Sequence[tuple[int, int]], student: Sequence[tuple[int, int]]) -> Sizes:
    """Return the sizes at which the maps of teacher and student are compared.

    Args:
        teacher: (H, W) of each of its taps.
        student: likewise, in the same order.

    Returns:
        The smaller of both on each axis.
    """
    return tuple((min(a[0], b[0]), min(a[1], b[1])) for a, b in zip(teacher, student, strict=True))


@torch.no_grad()
def tap_sizes(network: nn.Module, taps: Sequence[str], image_shape: ImageShape) -> Sizes:
    """Find the size of each tap's map by running a network on one zero image.

    Args:
        network: the network; each module keeps its mode.
        taps: names of modules.
        image_shape: (C, H, W) of the image.

    Returns:
        (H, W) of each tap.

    Raises:
        InputError: there is no module of such a name, it does not run, or gives no images.
    """
    if not taps:
        return ()
    parameter: Any = next(network.parameters(), torch.empty(0))
    with keep_modes(network), Taps(network, taps) as collected:
        network.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
        return tuple((attention.shape[1], attention.shape[2]) for attention in collected.take())


class LiveTeacher:
    """A teacher whose network runs on every batch.

    It runs in evaluation mode and without gradients. It is no `nn.Module`, so that neither `train()` nor an optimizer
    of the student reaches it.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str], *, autocast: torch.dtype | None = None):
        """Freeze a network.

        Args:
            network: the trained network.
            taps: names of the modules whose attention is compared.
            autocast: dtype that it runs in; None for that of its weights.

        Raises:
            InputError: there is no module of such a name.
        """
        self._network = network.eval().requires_grad_(False)
        self._taps = Taps(network, taps)
        self._autocast = autocast

    @torch.no_grad()
    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """Run the network; see `Teacher.signals`.

        Args:
            images: normalised and augmented (B, C, H, W).
            indices: not used.
            cache_epoch: not used.

        Returns:
            Logits and attention maps.
        """
        device = images.device.type
        with self._taps, torch.autocast(device, self._autocast, enabled=self._autocast is not None):
            logits = self._network(images)
        return Signals(logits.float(), self._taps.take())
