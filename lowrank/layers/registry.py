"""The table of methods: one line each. Everything else finds a method through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.errors import unknown
from lowrank.layers import (
    ACDC,
    CP,
    Bottleneck,
    Dense,
    Hashed,
    HashedBoth,
    HashedFull,
    Method,
    Monarch,
    Separable,
    Shuffle,
    TensorTrain,
    TiedBottleneck,
    Tucker,
)
from lowrank.utils.validation import validate_model

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "separable": Separable,
    "tensor_train": TensorTrain,
    "tucker": Tucker,
    "cp": CP,
    "hashed_full": HashedFull,
    "hashed": Hashed,
    "hashed_both": HashedBoth,
    "acdc": ACDC,
    "shuffle": Shuffle,
    "bottleneck": Bottleneck,
    "tied_bottleneck": TiedBottleneck,
    "monarch": Monarch,
}


def method_class(name: str) -> type[Method]:
    """The class of a method by name; raises InputError that lists the names."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def make_method(settings: Mapping[str, Any]) -> Method:
    """A method from its settings, e.g. {"name": "tucker", "dims": 3, "rank_scale": 0.25}; raises InputError."""
    return validate_model(method_class(str(settings.get("name", ""))), settings, "method")
