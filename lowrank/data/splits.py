"""Stratified subsets of a data set; the choice is a pure function of the labels, the size and the seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank.data.counter_rng import Purpose, Stream, shuffled
from lowrank.errors import InputError

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


def allocate(counts: list[int], total: int, spare: int = 0) -> list[int]:
    """Divide `total` over classes in proportion to `counts`, by largest remainders.

    Args:
        counts: images of each class, each at least 1 + spare.
        total: from len(counts) to sum(counts) - spare * len(counts).
        spare: images of each class that must remain.

    Returns:
        The share of each class: at least 1, and at most its count - spare. Their sum is `total`.
    """
    images = sum(counts)
    shares = [min(max(1, total * count // images), count - spare) for count in counts]

    def shortfall(index: int) -> int:  # in units of 1/images of an image
        return total * counts[index] - shares[index] * images

    while (missing := total - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        adjustable = [index for index in range(len(counts)) if 1 <= shares[index] + step <= counts[index] - spare]
        ranked = sorted(adjustable, key=lambda index: (-step * shortfall(index), index))
        for index in ranked[: abs(missing)]:
            shares[index] += step
    return shares


def stratified(labels: Labels, members: Indices, total: int, seed: int, purpose: Purpose, *, spare: int = 0) -> Indices:
    """Choose `total` of `members`, each class in proportion.

    A class's images are chosen in one fixed order, so a larger subset contains a smaller one but for rounding.

    Args:
        labels: int64 (N,), of the whole data set.
        members: int64 (n,), global indices to choose from.
        total: how many.
        seed: with `purpose`, of the order within the classes.
        purpose: keeps the choices of different splits independent.
        spare: images of each class that must remain.

    Returns:
        The chosen global indices, int64 (total,), ascending.
    """
    order = shuffled(Stream(seed, 0, purpose), torch.from_numpy(members)).numpy()
    members = members[order]
    classes, of_class, counts = np.unique(labels[members], return_inverse=True, return_counts=True)
    shares = allocate(counts.tolist(), total, spare)
    chosen = [members[of_class == index][:share] for index, share in zip(range(len(classes)), shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def hold_out(labels: Labels, members: Indices, fraction: float, seed: int, purpose: Purpose) -> tuple[Indices, Indices]:
    """Hold out a stratified fraction of images, with at least one image of each class on either side.

    Args:
        labels: int64 (N,), of the whole data set.
        members: global indices to divide, int64 (n,).
        fraction: to hold out, between 0 and 1.
        seed: of the choice.
        purpose: the name of the split that is held out.

    Returns:
        (remaining, held out): global indices, ascending.

    Raises:
        InputError: a class has a single image.
    """
    classes, counts = np.unique(labels[members], return_counts=True)
    if len(counts) == 0 or counts.min() < 2:
        reason = f"class {classes[counts.argmin()]} has {counts.min()}" if len(counts) else "there are none"
        raise InputError(f"the {purpose} needs at least 2 images of each class, but {reason}")
    total = min(max(round(fraction * len(members)), len(classes)), len(members) - len(classes))
    held_out = stratified(labels, members, total, seed, purpose, spare=1)
    return np.setdiff1d(members, held_out, assume_unique=True), held_out


def training_subset(labels: Labels, members: Indices, total: int, seed: int) -> Indices:
    """Choose a stratified subset of the training split.

    Args:
        labels: int64 (N,), of the whole data set.
        members: global indices of the training split, int64 (n,).
        total: how many images.
        seed: of the choice.

    Returns:
        The chosen global indices, int64 (total,), ascending.

    Raises:
        InputError: `total` is more than there are, or less than one image of each class.
    """
    classes = len(np.unique(labels[members]))
    if not classes <= total <= len(members):
        raise InputError(
            f"`train_images` must be between {classes} (one of each class) and {len(members)} (the training split), "
            f"but got {total}"
        )
    return stratified(labels, members, total, seed, "training subset")


def validation_subset(labels: Labels, members: Indices, at_most: int, seed: int) -> Indices:
    """Cut the validation split to a stratified subset.

    Args:
        labels: int64 (N,), of the whole data set.
        members: global indices of the validation split, int64 (n,).
        at_most: how many images; a smaller split is returned as it is.
        seed: of the choice.

    Returns:
        The chosen global indices, ascending.

    Raises:
        InputError: `at_most` is less than one image of each class.
    """
    if len(members) <= at_most:
        return members
    classes = len(np.unique(labels[members]))
    if at_most < classes:
        raise InputError(f"`train_images` must be at least {classes} (the classes in validation), but got {at_most}")
    return stratified(labels, members, at_most, seed, "validation subset")
