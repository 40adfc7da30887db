"""Checks what a caller of `compress_network` gives: batches of images and labels, and finite weights.

Also divides labelled images into those that choose and those that report.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowrank.compression import network_logits
from lowrank.errors import InputError, LowrankError
from lowrank.networks import copy_network
from lowrank.utils import keep_modes

REPEAT_TOLERANCE = 1e-3
"""Share of the largest logit by which two runs may differ, as a card's own order of additions makes them."""
BATCHES = "batches must yield images (B, C, H, W), or pairs of images and labels"


def first_images(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]], count: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Collect the first images of some batches.

    Args:
        batches: images, or pairs of images and labels; not more of them are read than needed.
        count: how many images.
        device: where they go.

    Returns:
        At most `count` images, and their labels where every batch has some.

    Raises:
        InputError: `count` is no number of at least 2, there are fewer than 2 images, or a batch is of another kind.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(f"calibration must be a number of images, at least 2, but got {count}")
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise InputError(f"{BATCHES}, but got a {type(batches).__name__}; put one batch into a list")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        part, target = (batch, None) if isinstance(batch, Tensor) else _pair(batch)
        if images and part.shape[1:] != images[0].shape[1:]:
            shapes = f"{tuple(images[0].shape[1:])} and {tuple(part.shape[1:])}"
            raise InputError(f"{BATCHES}, all images of one shape, but got {shapes}")
        images.append(part.to(device))
        if target is not None:
            labels.append(target.to(device))
        if sum(map(len, images)) >= count:
            break
    number = sum(map(len, images))
    if number < 2:
        raise InputError(f"at least 2 calibration images are needed, but got {number}")
    first = torch.cat(images)[:count]
    if not bool(torch.isfinite(first).all()):
        raise InputError("the images must be finite, but some hold NaN or infinity")
    return first, torch.cat(labels)[:count] if len(labels) == len(images) else None


def _pair(batch: object) -> tuple[Tensor, Tensor]:
    pair = tuple(batch) if isinstance(batch, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        kind = f"{type(batch).__name__} of {len(pair)}" if pair else type(batch).__name__
        raise InputError(f"{BATCHES}, but got a {kind}")
    images, labels = pair
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"labels must be one class number an image, but got {tuple(labels.shape)} for images {tuple(images.shape)}"
        )
    return images, labels


def labelled_images(pair: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Check the images and labels that choose among variants.

    Args:
        pair: images and labels.
        device: where they go.

    Returns:
        Both on the device.

    Raises:
        InputError: it is no such pair, or empty.
    """
    if not isinstance(pair, tuple | list) or not pair or not isinstance(pair[0], Tensor) or not len(pair[0]):
        raise InputError("validation must be a pair of images and labels, at least one of each")
    images, labels = _pair(pair)
    return images.to(device), labels.to(device)


def halve_by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Divide images into two halves with the same classes.

    The images of a folder lie class by class, so that its first half would have other classes than its second. The same
    labels are always divided alike. A class with one image is in one half alone.

    Args:
        labels: (B).

    Returns:
        The positions of both halves, in ascending order, every second image of each class in each. Of an odd number of
        images the second half has one more.
    """
    order = labels.argsort(stable=True)
    return order[1::2].sort().values, order[::2].sort().values


def check_labels(labels: Tensor, classes: int) -> None:
    """Check that labels are numbers of a network's classes.

    Args:
        labels: (B).
        classes: how many outputs the network has.

    Raises:
        InputError: a label is no such number.
    """
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise InputError(f"labels must be class numbers from 0 to {classes - 1}, but got {low:g} to {high:g}")


def check_weights(network: nn.Module) -> None:
    """Check that a network is a module with weights, all of them finite.

    Args:
        network: what the caller gave.

    Raises:
        InputError: it is not; the first weight that is NaN or infinite is named.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"the network must be an nn.Module, but got {type(network).__name__}")
    if next(network.parameters(), None) is None:
        raise InputError(f"{type(network).__name__} has no parameters, so there is nothing to compress")
    for name, value in network.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"the network's weights must be finite, but `{name}` holds NaN or infinity")


def check_logits_finite(network: nn.Module, logits: Tensor) -> None:
    """Check that a network's logits hold neither NaN nor infinity, which no error of factors could be measured by.

    Args:
        network: the network, for the message.
        logits: (B, K).

    Raises:
        InputError: some logits are not finite.
    """
    wrong = int((~torch.isfinite(logits)).any(1).sum())
    if wrong:
        raise InputError(
            f"{type(network).__name__} must give finite logits, but for {wrong} of {len(logits)} images some are NaN "
            "or infinity"
        )


def check_repeatable(network: nn.Module, images: Tensor) -> None:
    """Check that a network and a copy of it give the same logits for the same images.

    Layers are fitted to what a copy gives, and files are compared with it.

    Args:
        network: runs three times, in evaluation mode.
        images: (B, C, H, W), as the network takes them.

    Raises:
        InputError: the logits, or those of a copy, differ by more than `REPEAT_TOLERANCE` of the largest, or are not
            finite; or the network gives a parameter other memory while it runs.
    """
    with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits, difference, tolerance = _run_twice(network.eval(), images)
        check_logits_finite(network, logits)
        if difference > tolerance:
            raise InputError(
                f"{type(network).__name__} must give the same logits for the same images each time in evaluation mode, "
                f"but they differ by {difference:.2g} (the largest is {float(logits.abs().max()):.2g}): does it draw "
                "random numbers then?"
            )
        _check_copy(network, images, tolerance)


def check_exportable(network: nn.Module, images: Tensor) -> None:
    """Check that a network does nothing that no exported form can do.

    Some of it ends the process in the exporter to ONNX.

    A network whose logits are left to chance is not compared with a copy of it.

    Args:
        network: runs two or three times, in evaluation mode.
        images: (B, C, H, W), as the network takes them.

    Raises:
        InputError: the network gives a parameter other memory while it runs, cannot be copied, or a copy of it gives
            other logits.
    """
    with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
        _, difference, tolerance = _run_twice(network.eval(), images)
        if difference <= tolerance:
            _check_copy(network, images, tolerance)


def _run_twice(network: nn.Module, images: Tensor) -> tuple[Tensor, float, float]:
    """Return the logits, their largest difference in a second run, and the difference that rounding may make.

    Raises:
        InputError: the network gives a parameter other memory while it runs.
    """
    # The tensors are held, so that no other takes their memory
    before = {key: value.detach() for key, value in network.named_parameters()}
    first, second = (network_logits(network, images) for _ in range(2))
    moved = [key for key, value in network.named_parameters() if value.data_ptr() != before[key].data_ptr()]
    if moved:
        raise InputError(
            f"{type(network).__name__} gives its parameter `{moved[0]}` other memory while it runs, which no exported "
            "form can do: constrain the weight after each step of the training instead"
        )
    largest = float(first.abs().max())
    return first, float((first - second).abs().max()), REPEAT_TOLERANCE * max(largest, 1e-6)


def _check_copy(network: nn.Module, images: Tensor, tolerance: float) -> None:
    """Check that a copy of a network gives its logits; raises InputError where it does not."""
    name = type(network).__name__
    other = images.flip(0)  # in another order, so that what the copy wrongly has of the original does not fit
    try:
        copied = network_logits(copy_network(network), other)
    except LowrankError:
        raise
    except Exception as error:  # the network's own code may raise anything
        raise _refers_to_original(name) from error
    if float((copied - network_logits(network, other)).abs().max()) > tolerance:
        raise _refers_to_original(name)


def _refers_to_original(name: str) -> InputError:
    return InputError(
        f"a copy of {name} must give the logits of the original, but does not: does one of its hooks or functions "
        "refer to the network by `self`? Take the module that a hook is called with"
    )
