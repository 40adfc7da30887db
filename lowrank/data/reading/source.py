"""A data set as published: its images, their labels, and the published parts that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank.data.reading.image_store import ImageStore
from lowrank.data.splits import Indices, Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource:
    """A published data set. Global indices count through its training, validation and test part, in this order.

    Attributes:
        classes: names of the classes.
        labels: int64 (N,), each an index into `classes`.
        store: where the images are.
        training: global indices of the training part, int64 (n,).
        validation: of the validation part; None where none is published.
        test: of the test part; None where none is published.
    """

    classes: tuple[str, ...]
    labels: Labels
    store: ImageStore
    training: Indices
    validation: Indices | None = None
    test: Indices | None = None
