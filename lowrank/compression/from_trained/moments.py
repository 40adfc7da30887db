"""Second moments of what enters and leaves a layer, over calibration images.

Letters: B batch, I in-channels, O out-channels, g groups, KH x KW the kernel, D = I / g * KH * KW the width of a patch,
P positions (of all images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.compression.from_trained.replay import Replay

PATCH_FLOATS = 2**25
"""Entries of a block of patches that are made at a time: 128 MiB of float32."""

Plain = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Moments:
    """Centred second moments, in float64, of a layer's patches x (D, by group) and target outputs y (O / g, by group).

    Attributes:
        xx: covariance of the patches (g, D, D).
        yx: covariance of targets and patches (g, O / g, D).
        y_energy: summed variance of the targets of each group (g).
        x_mean: mean of the patches (g, D).
        y_mean: mean of the targets (g, O / g).
        positions: how many patches were seen.
    """

    xx: Tensor
    yx: Tensor
    y_energy: Tensor
    x_mean: Tensor
    y_mean: Tensor
    positions: int

    def about_zero(self) -> Moments:
        """The moments about zero instead of the means; the means themselves are then zero."""
        return Moments(
            self.xx + self.x_mean[:, :, None] * self.x_mean[:, None, :],
            self.yx + self.y_mean[:, :, None] * self.x_mean[:, None, :],
            self.y_energy + self.y_mean.square().sum(1),
            torch.zeros_like(self.x_mean), torch.zeros_like(self.y_mean), self.positions,
        )  # fmt: skip


def patches(layer: Plain, x: Tensor) -> Tensor:
    """The patches (g, P, D) that `layer` multiplies by its weight, of its input (B, I, H, W) or (B.., I)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if isinstance(layer.padding, str):
        total = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        if layer.padding == "same":
            top, left = total[0] // 2, total[1] // 2
            x = functional.pad(x, (left, total[1] - left, top, total[0] - top))
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = tuple(layer.padding)
    columns = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (B, I * KH * KW, L)
    by_group: Tensor = columns.unflatten(1, (layer.groups, -1))
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


def targets(layer: Plain, y: Tensor) -> Tensor:
    """The outputs (g, P, O / g) of `layer`, in the order of `patches`, of its output (B, O, H', W') or (B.., O)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    by_group: Tensor = y.flatten(2).unflatten(1, (layer.groups, -1))
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


class _Sums:
    """Running sums of the moments, shifted by the first block's means so that nothing cancels."""

    def __init__(self) -> None:
        self.positions = 0
        self.sums: list[Tensor] = []
        self.shift: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add patches (g, P, D) and targets (g, P, O / g)."""
        x, y = x.float(), y.float()
        if self.shift is None:
            self.shift = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self.shift[0], y - self.shift[1]
        new = [
            part.double() for part in (x.mT @ x, y.mT @ x, y.square().sum((1, 2)), x.sum(1), y.sum(1))
        ]  # one block is summed in float32, the blocks in float64
        self.sums = new if not self.sums else [old.add_(more) for old, more in zip(self.sums, new, strict=True)]
        self.positions += x.shape[1]

    def moments(self) -> Moments:
        """The centred moments; raises ValueError without any position."""
        if self.shift is None:
            raise ValueError("no calibration image reached the layer")
        count = self.positions
        xx, yx, yy, x_sum, y_sum = self.sums
        x_mean, y_mean = x_sum / count, y_sum / count
        return Moments(
            xx / count - x_mean[:, :, None] * x_mean[:, None, :],
            yx / count - y_mean[:, :, None] * x_mean[:, None, :],
            (yy / count - y_mean.square().sum(1)).clamp_min(0),
            x_mean + self.shift[0][:, 0].double(), y_mean + self.shift[1][:, 0].double(), count,
        )  # fmt: skip


def collect_moments(layer: Plain, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Sum the moments of a layer over pairs of its input and its target output.

    Args:
        layer: the dense layer; only its geometry is used.
        pairs: inputs (B, I, H, W) or (B.., I) with the outputs that a replacement of the layer should give for them.

    Returns:
        The centred moments, on the device of the inputs.

    Raises:
        ValueError: there are no pairs.
    """
    sums = _Sums()
    for x, y in pairs:
        _add_call(sums, layer, x, y)
    return sums.moments()


def _add_call(sums: _Sums, layer: Plain, x: Tensor, y: Tensor) -> None:
    """Add one call's inputs and targets, some images at a time so that their patches fit into memory."""
    width = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else x.shape[-1]
    positions = y[0].numel() // (y.shape[1] if isinstance(layer, nn.Conv2d) else y.shape[-1])
    images = max(1, PATCH_FLOATS // max(1, width * positions))
    for part_x, part_y in zip(x.split(images), y.split(images), strict=True):
        sums.add(patches(layer, part_x), targets(layer, part_y))


@torch.no_grad()
def collect_all_moments(
    network: nn.Module,
    names: Sequence[str],
    batches: Iterable[Tensor],
    outputs: LayerOutputs | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> dict[str, Moments]:
    """Collect the moments of several layers in one pass over the images.

    Args:
        network: the trained network, in evaluation mode.
        names: of the layers.
        batches: the calibration images (B, C, H, W).
        outputs: stores the layers' outputs on the way, where there is memory for them.
        progress: called for each call of a layer, with the batch and the layer's name, before the call's moments are
            added.

    Returns:
        The centred moments by name.
    """
    sums = {name: _Sums() for name in names}
    batch = 0

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, Plain)
            progress(f"batch {batch}, {name}")
            _add_call(sums[name], module, inputs[0].detach(), output.detach())
            if outputs is not None:
                outputs.store(name, output)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(add(name)) for name in names]
    try:
        for batch, images in enumerate(batches, start=1):  # noqa: B007  # the hooks read it
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: part.moments() for name, part in sums.items()}


class LayerOutputs:
    """Stores outputs of a trained network's layers, in the order of the calls.

    Args:
        limit: bytes that may be stored; layers beyond it have none.
    """

    def __init__(self, limit: float):
        self._calls: dict[str, list[Tensor]] = {}
        self._left_out: set[str] = set()
        self._remaining = limit

    def store(self, name: str, output: Tensor) -> None:
        """Store one call's output, unless there is no memory for it: then none of the layer's is stored."""
        if name in self._left_out:
            return
        self._remaining -= output.nbytes
        if self._remaining < 0:
            self._left_out.add(name)
            self._remaining += output.nbytes + sum(stored.nbytes for stored in self._calls.pop(name, []))
        else:
            self._calls.setdefault(name, []).append(output.detach().clone())  # in-place ReLUs follow

    def of(self, name: str) -> list[Tensor] | None:
        """The outputs of a layer's calls, batch after batch; None where they are not stored."""
        return self._calls.get(name)


class _ReachedError(Exception):
    """Ends a forward pass once the layer has run as often as it does."""


@torch.no_grad()
def layer_calls(network: nn.Module, layer: nn.Module, images: Tensor, calls: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Run a network until a layer has run, and return the layer's inputs and outputs.

    The rest of the network does not run. A layer that is used twice in one pass has two calls.

    Args:
        network: which has the layer.
        layer: whose calls are recorded.
        images: (B, C, H, W).
        calls: after how many the run ends.

    Returns:
        Input and output of each call.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach().clone(), output.detach().clone()))  # in-place ReLUs follow
        if len(seen) == calls:
            raise _ReachedError

    handle = layer.register_forward_hook(watch)
    try:
        network(images)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen


def paired_calls(
    student: nn.Module,
    dense: nn.Module,
    name: str,
    batches: Callable[[], Iterator[Tensor]],
    calls: int = 1,
    *,
    outputs: LayerOutputs | None = None,
    replay: Replay | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs for `collect_moments`: what enters the layer in the student, and what the dense network gives there.

    Args:
        student: the network compressed so far; module `name` is still to be fitted.
        dense: the trained network.
        name: the layer's name in both.
        batches: gives the calibration images (B, C, H, W) anew at each call.
        calls: how often the layer runs in one pass.
        outputs: the dense network's outputs over the same batches; what they lack is computed.
        replay: of the student, over the same batches.
    """
    ours, theirs = student.get_submodule(name), dense.get_submodule(name)
    stored = None if outputs is None else outputs.of(name)
    for index, images in enumerate(batches()):
        with nullcontext() if replay is None else replay.before(name, index):
            student_calls = layer_calls(student, ours, images, calls)
        if stored is None:
            dense_outputs = [y for _, y in layer_calls(dense, theirs, images, calls)]
        else:
            dense_outputs = stored[index * calls : (index + 1) * calls]
        for (x, _), y in zip(student_calls, dense_outputs, strict=True):
            yield x, y
