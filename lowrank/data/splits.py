"""Stratified parts of a data set: who is in is a pure function of the labels, the size and the seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank.data.counter_rng import Purpose, Stream, shuffled
from lowrank.errors import InputError

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


def allocate(counts: list[int], total: int, spare: int = 0) -> list[int]:
    """`total` divided over classes in proportion to `counts` by largest remainders.

    Each class gets at least 1 and leaves at least `spare`; the caller makes sure that this is possible.

    Args:
        counts: images of each class, each at least 1 + spare.
        total: from len(counts) to sum(counts) - spare * len(counts).
        spare: images of each class that must remain.
    """
    everything = sum(counts)
    shares = [min(max(1, total * count // everything), count - spare) for count in counts]

    def shortfall(place: int) -> int:  # in units of 1/everything image
        return total * counts[place] - shares[place] * everything

    places = range(len(counts))
    while (missing := total - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        open_places = [p for p in places if 1 <= shares[p] + step <= counts[p] - spare]
        ranked = sorted(open_places, key=lambda p: (-step * shortfall(p), p))
        for place in ranked[: abs(missing)]:
            shares[place] += step
    return shares


def stratified(labels: Labels, members: Indices, total: int, seed: int, purpose: Purpose, *, spare: int = 0) -> Indices:
    """`total` of `members`, each class in proportion, in ascending order.

    A class's images are taken in one fixed order, so a larger part holds a smaller one but for rounding.

    Args:
        labels: int64 (N,), of the whole data set.
        members: int64 (n,), global indices to choose from.
        total: how many.
        seed: with `purpose`, of the order within the classes.
        purpose: keeps the choices of different splits independent.
        spare: images of each class that must be left over.
    """
    order = shuffled(Stream(seed, 0, purpose), torch.from_numpy(members)).numpy()
    members = members[order]
    classes, of_class, counts = np.unique(labels[members], return_inverse=True, return_counts=True)
    shares = allocate(counts.tolist(), total, spare)
    parts = [members[of_class == place][:share] for place, share in zip(range(len(classes)), shares, strict=True)]
    return np.sort(np.concatenate(parts))


def hold_out(labels: Labels, members: Indices, fraction: float, seed: int, purpose: Purpose) -> tuple[Indices, Indices]:
    """(rest, held out): a stratified `fraction` of `members`, of each class at least one image on either side.

    Raises:
        InputError: a class has a single image.
    """
    classes, counts = np.unique(labels[members], return_counts=True)
    if len(counts) == 0 or counts.min() < 2:
        few = f"class {classes[counts.argmin()]} has {counts.min()}" if len(counts) else "there are none"
        raise InputError(f"the {purpose} needs at least 2 images of each class, but {few}")
    total = min(max(round(fraction * len(members)), len(classes)), len(members) - len(classes))
    held = stratified(labels, members, total, seed, purpose, spare=1)
    return np.setdiff1d(members, held, assume_unique=True), held


def training_part(labels: Labels, members: Indices, total: int, seed: int) -> Indices:
    """A stratified part of the training split of `total` images.

    Raises:
        InputError: `total` is more than there are, or less than one image of each class.
    """
    classes = len(np.unique(labels[members]))
    if not classes <= total <= len(members):
        raise InputError(
            f"`train_images` must be between {classes} (one of each class) and {len(members)} (the training split), "
            f"but got {total}"
        )
    return stratified(labels, members, total, seed, "training part")


def validation_part(labels: Labels, members: Indices, at_most: int, seed: int) -> Indices:
    """The validation split, cut to a stratified part of `at_most` images if it has more.

    Raises:
        InputError: `at_most` is less than one image of each class.
    """
    if len(members) <= at_most:
        return members
    classes = len(np.unique(labels[members]))
    if at_most < classes:
        raise InputError(f"`train_images` must be at least {classes} (the classes in validation), but got {at_most}")
    return stratified(labels, members, at_most, seed, "validation part")
