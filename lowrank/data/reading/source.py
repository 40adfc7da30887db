"""A data set as published: its images, their labels, and the published parts that they belong to.

A reader finds the files of one layout and gives an `ImageListing`. `make_source` then does what is alike for all: it
looks at the headers of all images, leaves broken ones out, and checks classes. Global indices count through the
training, validation and test part, in this order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowrank.data.reading.image_codec import Resize
from lowrank.data.reading.image_scan import ImageScan, broken_reason, conversion_notes, count_images
from lowrank.data.reading.image_store import EncodedStore, ImageStore
from lowrank.data.reading.part_names import Part
from lowrank.data.settings import DataSettings
from lowrank.data.splits import Indices, Labels
from lowrank.errors import InputError

_NAMED = 3  # files or classes that a message names


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource:
    """A published data set.

    Attributes:
        classes: names of the classes.
        labels: int64 (N,), each an index into `classes`.
        store: where the images are.
        training: global indices of the training part, int64 (n,).
        validation: of the validation part; None where none is published.
        test: of the test part; None where none is published.
        notes: what the user should know: what is not used, how many images are converted.
        scan: the headers of all images; None where they were not read.
    """

    classes: tuple[str, ...]
    labels: Labels
    store: ImageStore
    training: Indices
    validation: Indices | None = None
    test: Indices | None = None
    notes: tuple[str, ...] = ()
    scan: ImageScan | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageListing:
    """What a reader finds.

    Attributes:
        name: of the data set, for messages.
        classes: names of the classes.
        labels: int64 (n,) by part, each an index into `classes`.
        store: the images of all parts, one part after another.
        notes: what is not used, with counts.
    """

    name: str
    classes: tuple[str, ...]
    labels: Mapping[Part, Labels]
    store: EncodedStore
    notes: tuple[str, ...] = ()


def resize_of(settings: DataSettings) -> Resize | None:
    """Return how the images of a set are resized.

    Args:
        settings: of the set.

    Returns:
        The resizing; None where all images must have one size.
    """
    if settings.image_size is None:
        return None
    return Resize(settings.image_size, settings.crop, settings.interpolation, settings.resize)


def make_source(listing: ImageListing, settings: DataSettings) -> ImageSource:
    """Make the source of what a reader has found.

    Args:
        listing: of the reader.
        settings: channels, resizing, and how many images may be broken.

    Returns:
        The source.

    Raises:
        InputError: more images are broken than may be, sizes differ, or a class cannot be learned.
    """
    parts: tuple[Part, ...] = ("training", "validation", "test")
    for label in listing.classes:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in label):  # control, or no UTF-8
            raise InputError(
                f"data set {listing.name!r}: the name of a class must be one line of text in UTF-8, but got {label!a}"
            )
    labels = np.concatenate([listing.labels.get(part, np.empty(0, np.int64)) for part in parts])
    ends = np.cumsum([0] + [len(listing.labels.get(part, ())) for part in parts])
    members = {part: np.arange(ends[i], ends[i + 1]) for i, part in enumerate(parts)}
    _check_classes(listing, labels, members["training"], {part: members[part] for part in parts[1:]})
    channels, resize = None if settings.channels == "auto" else settings.channels, resize_of(settings)
    scan, notes = None, [*listing.notes, *_class_notes(listing, labels, members)]
    if channels is None or resize is None or settings.skip_broken:
        scan = _learn_shape(listing, np.arange(len(labels)), channels, resize, settings.skip_broken)
        notes += _broken_notes(listing, scan)
        members = {part: indices[~scan.broken[indices]] for part, indices in members.items()}
        if scan.broken.any():  # a class may have too few images now
            _check_classes(listing, labels, members["training"], {part: members[part] for part in parts[1:]})
        readable = np.concatenate(list(members.values()))
        notes += _scan_notes(scan, readable, settings) + _contradictions(listing, scan, labels, readable)
    else:  # the settings say what the headers would
        listing.store.set_shape((channels, resize.size, resize.size), resize)
    return ImageSource(
        classes=listing.classes,
        labels=labels,
        store=listing.store,
        training=members["training"],
        validation=members["validation"] if len(members["validation"]) else None,
        test=members["test"] if len(members["test"]) else None,
        notes=tuple(notes),
        scan=scan,
    )


def _learn_shape(
    listing: ImageListing, members: Indices, channels: int | None, resize: Resize | None, allowed: int
) -> ImageScan:
    try:
        scan = listing.store.learn_shape(members, channels, resize, allowed)
    except InputError as error:
        raise InputError(f"data set {listing.name!r}: {error}") from error
    broken = np.flatnonzero(scan.broken)
    if len(broken) > allowed:
        others = [listing.store.origin(index) for index in broken[1:_NAMED].tolist()]
        others += [f"{len(broken) - _NAMED:,} more"] if len(broken) > _NAMED else []
        raise InputError(
            f"{broken_reason(listing.store, int(broken[0]))}{'; so must ' + ', '.join(others) if others else ''}; "
            f"`data.skip_broken: {len(broken)}` would leave {'them' if others else 'it'} out"
        )
    return scan


def _broken_notes(listing: ImageListing, scan: ImageScan) -> list[str]:
    broken = np.flatnonzero(scan.broken).tolist()
    if not broken:
        return []
    more = ", ..." if len(broken) > _NAMED else ""
    reasons = "; ".join(broken_reason(listing.store, index) for index in broken[:_NAMED])
    return [f"left out, because broken: {count_images(len(broken))} ({reasons}{more})"]


def _scan_notes(scan: ImageScan, members: Indices, settings: DataSettings) -> list[str]:
    notes = conversion_notes(scan, members)
    grey = int(np.count_nonzero(scan.grey[members]))
    if settings.channels == 1 and grey < len(members):
        notes.append(f"{count_images(len(members) - grey)} with colours, {grey:,} grey: all are read as grey")
    elif 0 < grey < len(members):
        notes.append(f"{count_images(len(members) - grey)} with colours, {grey:,} grey: all are read as RGB")
    return notes


def _class_notes(listing: ImageListing, labels: Labels, members: Mapping[Part, Indices]) -> list[str]:
    """Say which classes look like one, and which have no images in a part."""
    spellings: dict[str, list[str]] = {}
    for name in listing.classes:
        spellings.setdefault(name.casefold().strip(), []).append(name)
    notes = [f"classes of their own, though their names differ in case or spaces at most: {', '.join(map(repr, names))}"
             for names in spellings.values() if len(names) > 1]  # fmt: skip
    counts = {part: np.bincount(labels[indices], minlength=len(listing.classes)) for part, indices in members.items()}
    trained = counts["training"] > 0
    for part, indices in members.items():
        absent = np.flatnonzero((counts[part] == 0) & (trained | (part == "training")))
        if len(indices) and len(absent):
            names = ", ".join(repr(listing.classes[index]) for index in absent[:_NAMED])
            notes.append(f"without images in the {part} part: {len(absent):,} of {len(trained):,} classes ({names}"
                         f"{', ...' if len(absent) > _NAMED else ''})")  # fmt: skip
    return notes


def _contradictions(listing: ImageListing, scan: ImageScan, labels: Labels, members: Indices) -> list[str]:
    """Count the pictures that are in several classes, by their encoded bytes."""
    candidates = members[scan.content[members] != 0]
    order = candidates[np.argsort(scan.content[candidates], kind="stable")]
    content, classes = scan.content[order], labels[order]
    differs = np.flatnonzero((content[1:] == content[:-1]) & (classes[1:] != classes[:-1]))
    if len(differs) == 0:
        return []
    pictures = len(np.unique(content[differs]))
    names = (f"{listing.store.origin(int(order[i]))} ({listing.classes[classes[i]]!r})"
             for i in (differs[0], differs[0] + 1))  # fmt: skip
    verb = "is" if pictures == 1 else "are"
    return [f"{count_images(pictures)} {verb} in several classes, such as {' = '.join(names)}"]


def _check_classes(
    listing: ImageListing, labels: Labels, training: Indices, others: Mapping[Part, Indices]
) -> None:  # fmt: skip
    counts = np.bincount(labels[training], minlength=len(listing.classes))
    trained = np.flatnonzero(counts)
    if len(trained) == 0:
        raise InputError(f"data set {listing.name!r}: its training part must have at least one image, but has none")
    if len(trained) == 1:
        raise InputError(
            f"data set {listing.name!r}: there must be at least 2 classes, but all {count_images(int(counts.sum()))} "
            f"of training are of class {listing.classes[trained[0]]!r}"
        )
    for part, members in others.items():
        untrained = sorted({listing.classes[label] for label in np.unique(labels[members]) if counts[label] == 0})
        if untrained:
            names = ", ".join(listing.classes[label] for label in trained[:10])
            raise InputError(
                f"data set {listing.name!r}: class {untrained[0]!r} of {part} has no training images; "
                f"the classes of training are {names}{', ...' if len(trained) > 10 else ''}"
            )
    # One image is needed in each split: of those that are published, and of those that are held out
    needed = 1 + sum(len(members) == 0 for members in others.values())
    few = [index for index in trained.tolist() if counts[index] < needed]
    if few:
        shown = ", ".join(f"{listing.classes[index]!r} has {counts[index]:,}" for index in few[:10])
        held_out = " and ".join(part for part, members in others.items() if len(members) == 0)
        raise InputError(
            f"data set {listing.name!r}: each class needs at least {needed} images, because {held_out} images are held "
            f"out of training, but {shown}{', ...' if len(few) > 10 else ''}"
        )
