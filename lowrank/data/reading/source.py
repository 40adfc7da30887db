"""A data set as published: all its images, their labels, and which belong to which published part."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank.data.reading.image_store import ImageStore
from lowrank.data.splits import Indices, Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource:
    """Global indices count through the training, validation and test parts in this order.

    `labels`: int64 (N,), each an index into `classes`. `validation` and `test` are None where none is published.
    """

    classes: tuple[str, ...]
    labels: Labels
    store: ImageStore
    training: Indices
    validation: Indices | None = None
    test: Indices | None = None
